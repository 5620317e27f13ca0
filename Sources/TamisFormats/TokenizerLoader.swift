// Reads the parts of tokenizer.json into a vocabulary, the added tokens and the tokens around a text, and refuses
// every setting that Tokenizer would not follow exactly.

import TamisRuntime

/// What a tokenizer looks tokens up in.
struct TokenTables: ~Copyable, Sendable {
  var vocabulary: Vocabulary
  var added: AddedTokens  // found in the text as it is
  var addedNormalized: AddedTokens  // found in what the others leave

  init(_ context: Context) {
    vocabulary = Vocabulary(context)
    added = AddedTokens(context)
    addedNormalized = AddedTokens(context)
  }
}

struct TokenizerLoader: ~Copyable {
  private let normalizer: Normalizer
  private var tables: TokenTables
  private(set) var ignoresMerges = false
  private(set) var prefix: [Int32] = []
  private(set) var suffix: [Int32] = []
  private var text: GrowableBuffer<UInt8>
  private var result: GrowableBuffer<UInt8>

  private static let surroundingLimit = 64

  init(_ normalizer: Normalizer, _ context: Context) {
    self.normalizer = normalizer
    tables = TokenTables(context)
    text = GrowableBuffer(context)
    result = GrowableBuffer(context)
  }

  consuming func takeTables() -> TokenTables { tables }

  mutating func load(_ root: JSONValue) throws(TamisError) {
    try checkDecoder(try root.required("decoder"))
    let model = try root.required("model")
    try checkModel(model)
    try loadVocabulary(try model.required("vocab"))
    for token in root.member("added_tokens")?.elements ?? root.elements { try addToken(token) }
    try tables.vocabulary.indexBytes()
    try loadMerges(try model.required("merges"))
    if let processor = root.member("post_processor") { try loadPostProcessor(processor) }
  }

  // MARK: what must be as expected

  private func unsupported(_ what: String) -> TamisError { TamisError(.unsupported, "tokenizer: \(what)") }

  private func checkDecoder(_ decoder: JSONValue) throws(TamisError) {
    let type = try decoder.required("type")
    if type.equals("Sequence") {
      let parts = try decoder.required("decoders")
      guard parts.count == 1 else { throw unsupported("a decoder of several parts") }
      for part in parts.elements { try checkDecoder(part) }
    } else if !type.equals("ByteLevel") {
      throw unsupported("decoder \(try type.string().prefix(64))")
    }
  }

  private mutating func checkModel(_ model: JSONValue) throws(TamisError) {
    if let type = model.member("type"), !type.equals("BPE") {
      throw unsupported("model \(try type.string().prefix(64))")
    }
    if let dropout = model.member("dropout"), try dropout.double() != 0 { throw unsupported("dropout") }
    if let affix = model.member("continuing_subword_prefix"), !affix.equals("") { throw unsupported("subword prefixes") }
    if let affix = model.member("end_of_word_suffix"), !affix.equals("") { throw unsupported("subword suffixes") }
    if let fallback = model.member("byte_fallback"), try fallback.bool() { throw unsupported("byte fallback") }
    ignoresMerges = try model.member("ignore_merges")?.bool() ?? false
  }

  // MARK: tokens

  private mutating func loadVocabulary(_ vocab: JSONValue) throws(TamisError) {
    guard vocab.isObject else { throw vocab.failure("an object of tokens and ids") }
    for (key, value) in vocab.members {
      text.truncate(to: 0)
      try key.appendString(to: &text)
      try tables.vocabulary.add(text.elements, id: try value.integer(in: 0...Vocabulary.idLimit &- 1))
    }
  }

  private mutating func addToken(_ token: JSONValue) throws(TamisError) {
    let content = try token.required("content")
    let id = try token.required("id").integer(in: 0...Vocabulary.idLimit &- 1)
    text.truncate(to: 0)
    try content.appendString(to: &text)
    guard text.count > 0 else { return }
    guard text.count <= 4096 else { throw content.failure("a token of at most 4096 bytes") }
    guard !tables.vocabulary.isAdded(Int32(truncatingIfNeeded: id)) else {
      throw content.failure("each added token once")
    }
    try tables.vocabulary.add(text.elements, id: id)
    let special = try token.member("special")?.bool() ?? false
    tables.vocabulary.markAdded(id, special: special)
    let entry = AddedToken(
      id: Int32(truncatingIfNeeded: id), isSpecial: special,
      singleWord: try token.member("single_word")?.bool() ?? false,
      stripsLeft: try token.member("lstrip")?.bool() ?? false,
      stripsRight: try token.member("rstrip")?.bool() ?? false)
    if try token.member("normalized")?.bool() ?? !special {
      let isChanged = try normalizer.normalize(text.elements, into: &result)
      try tables.addedNormalized.add(entry, content: isChanged ? result.elements : text.elements)
    } else {
      try tables.added.add(entry, content: text.elements)
    }
  }

  // MARK: merges

  private mutating func loadMerges(_ merges: JSONValue) throws(TamisError) {
    guard merges.isArray else { throw merges.failure("an array of merges") }
    try tables.vocabulary.reserveMerges(merges.count)
    for (rank, merge) in merges.elements.enumerated() {
      let boundary = try readPair(merge)
      let pair = text.elements
      result.truncate(to: 0)
      try result.append(contentsOf: UnsafeBufferPointer(rebasing: pair[..<boundary]))
      try result.append(contentsOf: UnsafeBufferPointer(rebasing: pair[boundary...]))
      guard let left = tables.vocabulary.id(of: UnsafeBufferPointer(rebasing: pair[..<boundary])),
        let right = tables.vocabulary.id(of: UnsafeBufferPointer(rebasing: pair[boundary...])),
        let merged = tables.vocabulary.id(of: result.elements)
      else { throw merge.failure("a merge of tokens in the vocabulary, into one in the vocabulary") }
      tables.vocabulary.addMerge(left: left, right: right, rank: rank, result: merged)
    }
  }

  /// Leaves both sides in `text`, one after the other, and returns where the right one begins.
  private mutating func readPair(_ merge: JSONValue) throws(TamisError) -> Int {
    text.truncate(to: 0)
    if merge.isArray, merge.count == 2 {
      var boundary = 0
      for (index, side) in merge.elements.enumerated() {
        if index == 1 { boundary = text.count }
        try side.appendString(to: &text)
      }
      return boundary
    }
    try merge.appendString(to: &text)
    let spaces = text.elements.indices.filter { text.element(at: $0) == UInt8(ascii: " ") }
    guard spaces.count == 1, let space = spaces.first else {
      throw merge.failure("two tokens with a space between them")
    }
    for index in space..<(text.count &- 1) { text.set(text.element(at: index &+ 1) ?? 0, at: index) }
    text.truncate(to: text.count &- 1)
    return space
  }

  // MARK: post-processor

  private mutating func loadPostProcessor(_ processor: JSONValue) throws(TamisError) {
    let type = try processor.required("type")
    if type.equals("Sequence") {
      for part in try processor.required("processors").elements { try loadPostProcessor(part) }
    } else if type.equals("TemplateProcessing") {
      try loadTemplate(processor)
    } else if !type.equals("ByteLevel") {  // which only moves offsets
      throw unsupported("post-processor \(try type.string().prefix(64))")
    }
  }

  private mutating func loadTemplate(_ processor: JSONValue) throws(TamisError) {
    let single = try processor.required("single")
    guard prefix.isEmpty, suffix.isEmpty else { throw unsupported("two templates") }
    var sawText = false
    for item in single.elements {
      if let sequence = item.member("Sequence") {
        guard !sawText, try sequence.required("id").equals("A") else { throw unsupported("the template's sequences") }
        sawText = true
        continue
      }
      let name = try item.required("SpecialToken").required("id").string()
      for (key, value) in try processor.required("special_tokens").members where try key.string() == name {
        for id in try value.required("ids").elements { try appendSurrounding(id, afterText: sawText) }
      }
    }
    guard sawText else { throw single.failure("a template with the sequence A") }
  }

  private mutating func appendSurrounding(_ value: JSONValue, afterText: Bool) throws(TamisError) {
    let id = Int32(truncatingIfNeeded: try value.integer(in: 0...Vocabulary.idLimit &- 1))
    guard tables.vocabulary.content(of: id) != nil,
      prefix.count &+ suffix.count < TokenizerLoader.surroundingLimit
    else {
      throw value.failure("the id of a token")
    }
    if afterText { suffix.append(id) } else { prefix.append(id) }
  }
}
