// Cuts a text into the pieces within which byte pairs are merged, as tokenizer.json's `pre_tokenizer` says: a sequence
// of splits, each applied to the pieces of the one before, of which the last is the byte level.
// It refuses pre-tokenizers that are not byte-level, and kinds other than Sequence, Split, Digits and ByteLevel.

import TamisRuntime

struct PreTokenizer: Sendable {
  enum Behavior { case removed, isolated, mergedWithPrevious, mergedWithNext, contiguous }

  struct Split: Sendable {
    let regex: Regex
    let behavior: Behavior
    let invert: Bool
  }

  private(set) var splits: [Split] = []
  /// A space is put before every text that does not begin with one.
  private(set) var addsPrefixSpace = false
  private var reachedByteLevel = false
  private let context: Context

  /// GPT-2's pattern, which ByteLevel applies itself.
  private static let byteLevelPattern =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
  private static let splitLimit = 32

  init(_ description: JSONValue, _ context: Context) throws(TamisError) {
    self.context = context
    try add(description)
    guard reachedByteLevel else {
      throw TamisError(.unsupported, "tokenizer: its pre-tokenizer does not end in ByteLevel")
    }
  }

  private mutating func add(_ description: JSONValue) throws(TamisError) {
    let type = try description.required("type")
    guard !reachedByteLevel else { throw TamisError(.unsupported, "tokenizer: a pre-tokenizer follows ByteLevel") }
    if type.equals("Sequence") {
      for part in try description.required("pretokenizers").elements { try add(part) }
    } else if type.equals("Split") {
      try append(
        PreTokenizer.pattern(try description.required("pattern")),
        PreTokenizer.behavior(try description.required("behavior")),
        invert: try description.member("invert")?.bool() ?? false)
    } else if type.equals("Digits") {
      let individual = try description.member("individual_digits")?.bool() ?? false
      try append("\\p{N}", individual ? .isolated : .contiguous)
    } else if type.equals("ByteLevel") {
      addsPrefixSpace = try description.member("add_prefix_space")?.bool() ?? true
      guard !addsPrefixSpace || splits.isEmpty else {
        throw TamisError(.unsupported, "tokenizer: a prefix space after another pre-tokenizer")
      }
      if try description.member("use_regex")?.bool() ?? true {
        try append(RegexDialect.translate(PreTokenizer.byteLevelPattern), .isolated)
      }
      reachedByteLevel = true
    } else {
      throw TamisError(.unsupported, "tokenizer: pre-tokenizer \(try type.string().prefix(64))")
    }
  }

  private mutating func append(_ pattern: String, _ behavior: Behavior, invert: Bool = false) throws(TamisError) {
    guard splits.count < PreTokenizer.splitLimit else {
      throw TamisError(.unsupported, "tokenizer: more than \(PreTokenizer.splitLimit) pre-tokenizers")
    }
    splits.append(Split(regex: try Regex(pattern, context), behavior: behavior, invert: invert))
  }

  private static func pattern(_ description: JSONValue) throws(TamisError) -> String {
    if let regex = description.member("Regex") { return try RegexDialect.translate(try regex.string()) }
    return RegexDialect.literal(try description.required("String").string())
  }

  private static func behavior(_ name: JSONValue) throws(TamisError) -> Behavior {
    switch try name.string() {
    case "Removed": return .removed
    case "Isolated": return .isolated
    case "MergedWithPrevious": return .mergedWithPrevious
    case "MergedWithNext": return .mergedWithNext
    case "Contiguous": return .contiguous
    default: throw name.failure("a split behavior")
    }
  }
}

/// The matches of a pattern in a text and the stretches between them, in order and without gaps.
struct RegexSections: ~Copyable {
  private var searchFrom = 0
  private var covered = 0
  private var lastMatchEnd = -1
  private var found: Range<Int>?
  private var exhausted = false

  mutating func next(
    _ regex: Regex, in text: UnsafeBufferPointer<UInt8>, _ matcher: inout RegexMatcher
  ) throws(TamisError) -> (range: Range<Int>, isMatch: Bool)? {
    if found == nil, !exhausted {
      found = try search(regex, in: text, &matcher)
      exhausted = found == nil
    }
    guard let match = found else {
      guard covered < text.count else { return nil }
      defer { covered = text.count }
      return (covered..<text.count, false)
    }
    if covered < match.lowerBound {
      defer { covered = match.lowerBound }
      return (covered..<match.lowerBound, false)
    }
    found = nil
    covered = match.upperBound
    return (match, true)
  }

  /// An empty match directly behind the last match does not count.
  private mutating func search(
    _ regex: Regex, in text: UnsafeBufferPointer<UInt8>, _ matcher: inout RegexMatcher
  ) throws(TamisError) -> Range<Int>? {
    while searchFrom <= text.count {
      guard let match = try matcher.find(regex, in: text, from: searchFrom) else { return nil }
      if match.isEmpty, match.lowerBound == lastMatchEnd {
        searchFrom &+= 1
        while searchFrom < text.count, text[searchFrom] & 0xC0 == 0x80 { searchFrom &+= 1 }
        continue
      }
      searchFrom = match.upperBound
      lastMatchEnd = match.upperBound
      return match
    }
    return nil
  }
}

/// Joins or drops sections as a behavior says; a piece is complete when the next one begins.
struct PieceJoiner {
  private let behavior: PreTokenizer.Behavior
  private var pending: Range<Int>?
  private var pendingIsMatch = false

  init(_ behavior: PreTokenizer.Behavior) { self.behavior = behavior }

  /// Takes the next section and returns the piece that it completes.
  mutating func push(_ range: Range<Int>, isMatch: Bool) -> Range<Int>? {
    if behavior == .removed, isMatch { return flush() }
    if let before = pending, joins(isMatch) {
      pending = before.lowerBound..<range.upperBound
      pendingIsMatch = isMatch
      return nil
    }
    defer {
      pending = range
      pendingIsMatch = isMatch
    }
    return pending
  }

  mutating func flush() -> Range<Int>? {
    defer { pending = nil }
    return pending
  }

  private func joins(_ isMatch: Bool) -> Bool {
    switch behavior {
    case .removed, .isolated: false
    case .mergedWithPrevious: isMatch && !pendingIsMatch
    case .mergedWithNext: !isMatch && pendingIsMatch
    case .contiguous: isMatch == pendingIsMatch
    }
  }
}
