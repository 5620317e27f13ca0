// Byte-level BPE from a Hugging Face tokenizer.json: text to token ids and back, the same ids as the `tokenizers`
// library makes. Read-only after loading, so one tokenizer serves all threads.
//
// Text goes in as bytes. Invalid UTF-8 is replaced by U+FFFD first (one for each maximal invalid part), exactly as
// Python's `bytes.decode(errors="replace")` would before it calls `tokenizers`; the patterns are defined on characters
// only. Ids come back as the exact bytes of their tokens, never repaired: a token may hold half a character, and
// `TextStream` holds such halves back until they are whole.
//
// It refuses what it would not do exactly: normalizers beside the four forms of Unicode, dropout, byte fallback, unknown tokens,
// pre-tokenizers and decoders that are not byte-level. The file's `truncation` and `padding` are not applied: a
// runtime must not shorten a prompt silently.
// One deliberate difference: an added token decodes to its content; `tokenizers` sends it through the byte alphabet
// as well, which turns the "é" of an added "née" into a broken byte.

package import TamisRuntime

package final class Tokenizer: Sendable {
  package static let textLimit = 1 << 29  // bytes in one call; repaired, three times as many still count in 32 bits

  private let context: Context
  private let tables: TokenTables
  private let normalizer: Normalizer
  private let preTokenizer: PreTokenizer
  private let ignoresMerges: Bool
  private let prefix: [Int32]
  private let suffix: [Int32]

  package convenience init(path: String, _ context: Context = .unmetered) throws(TamisError) {
    try self.init(JSONDocument(path: path, context), context)
  }

  package init(_ document: JSONDocument, _ context: Context = .unmetered) throws(TamisError) {
    self.context = context
    normalizer = try Normalizer(document.root.member("normalizer"))
    var loader = TokenizerLoader(normalizer, context)
    try loader.load(document.root)
    preTokenizer = try PreTokenizer(document.root.required("pre_tokenizer"), context)
    ignoresMerges = loader.ignoresMerges
    prefix = loader.prefix
    suffix = loader.suffix
    tables = loader.takeTables()
  }

  /// The highest id plus one.
  package var vocabularySize: Int { tables.vocabulary.count }

  /// Special tokens mark structure (begin, end, roles); decoding may leave them out.
  package func isSpecial(_ id: Int32) -> Bool { tables.vocabulary.isSpecial(id) }

  /// The id of the token that tokenizer.json writes like this (a space is written "Ġ", for example).
  package func id(of content: String) -> Int32? {
    var content = content
    return content.withUTF8 { tables.vocabulary.id(of: $0) }
  }

  // MARK: encoding

  package struct EncodingOptions {
    /// Puts the tokens around the text that the file's post-processor names (a begin-of-text mark, for example).
    package var addsSpecialTokens: Bool
    /// Special tokens written in the text become plain text: for text that is not trusted.
    package var treatsSpecialAsText: Bool

    package init(addsSpecialTokens: Bool = true, treatsSpecialAsText: Bool = false) {
      self.addsSpecialTokens = addsSpecialTokens
      self.treatsSpecialAsText = treatsSpecialAsText
    }
  }

  /// Appends the ids of `text`; a failed call appends nothing.
  package func encode(
    _ text: UnsafeRawBufferPointer, _ options: EncodingOptions = EncodingOptions(),
    into ids: inout GrowableBuffer<Int32>
  ) throws(TamisError) {
    guard text.count <= Tokenizer.textLimit else {
      throw TamisError(.argument, "tokenize: \(text.count) bytes, at most \(Tokenizer.textLimit) in one call")
    }
    let before = ids.count
    do throws(TamisError) {
      if options.addsSpecialTokens { for id in prefix { try ids.append(id) } }
      if UTF8Text.firstInvalid(text) == nil {
        try encodeValid(text, options, into: &ids)
      } else {
        var repaired = GrowableBuffer<UInt8>(context)
        try UTF8Text.appendRepaired(text, to: &repaired)
        try encodeValid(UnsafeRawBufferPointer(repaired.elements), options, into: &ids)
      }
      if options.addsSpecialTokens { for id in suffix { try ids.append(id) } }
    } catch {
      ids.truncate(to: before)
      throw error
    }
  }

  package func encode(_ text: String, _ options: EncodingOptions = EncodingOptions()) throws(TamisError) -> [Int32] {
    var bytes = GrowableBuffer<UInt8>(context)
    for byte in text.utf8 { try bytes.append(byte) }
    var ids = GrowableBuffer<Int32>(context)
    try encode(UnsafeRawBufferPointer(bytes.elements), options, into: &ids)
    return Array(ids.elements)
  }

  private func encodeValid(
    _ text: UnsafeRawBufferPointer, _ options: EncodingOptions, into ids: inout GrowableBuffer<Int32>
  ) throws(TamisError) {
    try text.withMemoryRebound(to: UInt8.self) { text throws(TamisError) in
      var encoder = try PieceEncoder(length: text.count, cached: !preTokenizer.addsPrefixSpace, context)
      var normal = GrowableBuffer<UInt8>(context)
      var outer = AddedTokenScanner(treatSpecialAsText: options.treatsSpecialAsText)
      while let section = outer.next(tables.added, in: text) {
        switch section {
        case .token(let id): try ids.append(id)
        case .text(let range):
          let rest = UnsafeBufferPointer(rebasing: text[range])
          let isChanged = try normalizer.normalize(rest, into: &normal)
          encoder.isCaching = !isChanged
          try encodeNormal(isChanged ? normal.elements : rest, options, &encoder, into: &ids)
        }
      }
    }
  }

  /// A stretch in normal form.
  private func encodeNormal(
    _ text: UnsafeBufferPointer<UInt8>, _ options: EncodingOptions, _ encoder: inout PieceEncoder,
    into ids: inout GrowableBuffer<Int32>
  ) throws(TamisError) {
    var scanner = AddedTokenScanner(treatSpecialAsText: options.treatsSpecialAsText)
    while let section = scanner.next(tables.addedNormalized, in: text) {
      switch section {
      case .token(let id): try ids.append(id)
      case .text(let range): try encodePlain(UnsafeBufferPointer(rebasing: text[range]), &encoder, into: &ids)
      }
    }
  }

  /// A stretch without added tokens.
  private func encodePlain(
    _ text: UnsafeBufferPointer<UInt8>, _ encoder: inout PieceEncoder, into ids: inout GrowableBuffer<Int32>
  ) throws(TamisError) {
    if preTokenizer.addsPrefixSpace, let first = text.first, first != UInt8(ascii: " ") {
      var spaced = GrowableBuffer<UInt8>(context)
      try spaced.append(UInt8(ascii: " "))
      try spaced.append(contentsOf: text)
      try split(spaced.elements, at: 0, &encoder, into: &ids)
    } else {
      try split(text, at: 0, &encoder, into: &ids)
    }
  }

  private func split(
    _ text: UnsafeBufferPointer<UInt8>, at level: Int, _ encoder: inout PieceEncoder,
    into ids: inout GrowableBuffer<Int32>
  ) throws(TamisError) {
    guard level < preTokenizer.splits.count else {
      return try encoder.encode(text, tables.vocabulary, ignoresMerges: ignoresMerges, into: &ids)
    }
    let split = preTokenizer.splits[level]
    var sections = RegexSections()
    var joiner = PieceJoiner(split.behavior)
    while let (range, isMatch) = try sections.next(split.regex, in: text, &encoder.matcher) {
      if let piece = joiner.push(range, isMatch: isMatch != split.invert), !piece.isEmpty {
        try self.split(UnsafeBufferPointer(rebasing: text[piece]), at: level &+ 1, &encoder, into: &ids)
      }
    }
    if let piece = joiner.flush(), !piece.isEmpty {
      try self.split(UnsafeBufferPointer(rebasing: text[piece]), at: level &+ 1, &encoder, into: &ids)
    }
  }

  // MARK: decoding

  /// Appends the exact bytes of one token: `.argument` where no token has that id.
  package func appendBytes(of id: Int32, to out: inout GrowableBuffer<UInt8>) throws(TamisError) {
    guard let content = tables.vocabulary.content(of: id) else {
      throw TamisError(.argument, "detokenize: no token has the id \(id); the vocabulary ends at \(vocabularySize)")
    }
    let before = out.count
    if !tables.vocabulary.isAdded(id), try appendAlphabetic(content, to: &out) { return }
    out.truncate(to: before)
    try out.append(contentsOf: content)
  }

  /// Appends the bytes of tokens; a failed call appends nothing.
  package func decode(
    _ ids: UnsafeBufferPointer<Int32>, skipsSpecial: Bool, into out: inout GrowableBuffer<UInt8>
  ) throws(TamisError) {
    let before = out.count
    do throws(TamisError) {
      for id in ids where !(skipsSpecial && tables.vocabulary.isSpecial(id)) { try appendBytes(of: id, to: &out) }
    } catch {
      out.truncate(to: before)
      throw error
    }
  }

  /// False where a character is outside the byte alphabet: such a token stands for itself.
  private func appendAlphabetic(
    _ content: UnsafeBufferPointer<UInt8>, to out: inout GrowableBuffer<UInt8>
  ) throws(TamisError) -> Bool {
    var position = 0
    while position < content.count {
      guard case .scalar(let scalar, let length) = UTF8Text.unit(UnsafeRawBufferPointer(content), at: position),
        let byte = ByteAlphabet.byte(of: scalar.value)
      else { return false }
      try out.append(byte)
      position &+= length
    }
    return true
  }
}

/// Text that arrives token by token: whole characters are handed on, an unfinished one waits for its rest.
package struct TextStream: ~Copyable {
  private var held: GrowableBuffer<UInt8>

  package init(_ context: Context) { held = GrowableBuffer(context) }

  /// Appends to `out` what is complete after `bytes`. Bytes that can never become valid are passed on as they are.
  /// A failed call changes nothing.
  package mutating func push(
    _ bytes: UnsafeBufferPointer<UInt8>, into out: inout GrowableBuffer<UInt8>
  ) throws(TamisError) {
    try out.reserve(Size.sum(out.count, held.count, bytes.count))
    try held.append(contentsOf: bytes)
    let ready = held.count &- UTF8Text.unfinishedTail(UnsafeRawBufferPointer(held.elements))
    try out.append(contentsOf: UnsafeBufferPointer(rebasing: held.elements[..<ready]))
    let waiting = held.count &- ready
    for index in 0..<waiting { held.set(held.element(at: ready &+ index) ?? 0, at: index) }
    held.truncate(to: waiting)
  }

  /// The end of the stream: what is still held, unfinished as it is.
  package mutating func finish(into out: inout GrowableBuffer<UInt8>) throws(TamisError) {
    try out.append(contentsOf: held.elements)
    held.truncate(to: 0)
  }
}
