// PCRE2 for the splits of a tokenizer. A compiled pattern is shared by all threads; what a search writes to belongs to
// one matcher. It refuses patterns that PCRE2 does not know, and searches that take more steps than a budget
// proportional to the text. PCRE2's own limit counts anew at each start position, so a pattern could stay below it
// everywhere and still take quadratic time. It does not count the characters that a possessive repetition takes:
// therefore PCRE2 may not make repetitions possessive by itself, and a file whose pattern is written with one can cost
// quadratic time, never more.
//
// No just-in-time compilation: it would need executable memory in the host's process, and without it the text of a whole
// context is cut in a fraction of a second.

import CPCRE2
import TamisRuntime

final class Regex: @unchecked Sendable {
  fileprivate let code: OpaquePointer
  private let context: Context  // the code's memory is its

  /// `pattern` in PCRE2's own syntax (see RegexDialect).
  init(_ pattern: String, _ context: Context) throws(TamisError) {
    let general = try RegexMemory.generalContext(context)
    defer { pcre2_general_context_free_8(general) }
    guard let settings = pcre2_compile_context_create_8(general) else { throw RegexMemory.exhausted }
    defer { pcre2_compile_context_free_8(settings) }
    pcre2_set_newline_8(settings, UInt32(PCRE2_NEWLINE_LF))
    pcre2_set_max_pattern_length_8(settings, 65536)
    var error: Int32 = 0
    var offset = 0
    var pattern = pattern
    let options =
      UInt32(PCRE2_UTF) | UInt32(PCRE2_UCP) | UInt32(PCRE2_NEVER_BACKSLASH_C) | UInt32(PCRE2_NO_AUTO_POSSESS)
    let compiled = pattern.withUTF8 { pcre2_compile_8($0.baseAddress, $0.count, options, &error, &offset, settings) }
    guard let compiled else {
      if error == PCRE2_ERROR_HEAP_FAILED { throw RegexMemory.exhausted }
      throw TamisError(
        .unsupported, "tokenizer: its pre-tokenizer pattern is unknown to PCRE2 (error \(error) at byte \(offset))")
    }
    code = compiled
    self.context = context
  }

  deinit { pcre2_code_free_8(code) }
}

/// PCRE2's memory comes from a context as well. Its `free` is not told the size, so each block begins with it.
private enum RegexMemory {
  static let exhausted = TamisError(.memory, "tokenizer: no memory for its pre-tokenizer pattern")
  private static let header = 64  // keeps the block's alignment

  /// The context must outlive all that is made with the result.
  static func generalContext(_ context: Context) throws(TamisError) -> OpaquePointer {
    let user = Unmanaged.passUnretained(context).toOpaque()
    guard let general = pcre2_general_context_create_8(allocate, release, user) else { throw exhausted }
    return general
  }

  private static let allocate: @convention(c) (Int, UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? = {
    size, user in
    guard let user else { return nil }
    let context = Unmanaged<Context>.fromOpaque(user).takeUnretainedValue()
    let (bytes, overflow) = size.addingReportingOverflow(header)
    guard !overflow, let block = try? context.allocate(bytes: bytes, what: "tokenizer pattern") else { return nil }
    block.storeBytes(of: bytes, as: Int.self)
    return block + header
  }

  private static let release: @convention(c) (UnsafeMutableRawPointer?, UnsafeMutableRawPointer?) -> Void = {
    memory, user in
    guard let memory, let user else { return }
    let block = memory - header
    Unmanaged<Context>.fromOpaque(user).takeUnretainedValue().release(block, bytes: block.load(as: Int.self))
  }
}

/// The state of the searches of one call.
struct RegexMatcher: ~Copyable {
  private let match: OpaquePointer
  private let limits: OpaquePointer
  private let context: Context  // the memory of both is its
  private var stepsLeft: Int

  /// What one start position may take uncharged: ordinary patterns need far less, except on long runs of white space.
  private static let freeSteps = 256

  /// For texts of `length` bytes altogether.
  init(length: Int, _ context: Context) throws(TamisError) {
    let general = try RegexMemory.generalContext(context)
    defer { pcre2_general_context_free_8(general) }
    guard let match = pcre2_match_data_create_8(1, general) else { throw RegexMemory.exhausted }
    guard let limits = pcre2_match_context_create_8(general) else {
      pcre2_match_data_free_8(match)
      throw RegexMemory.exhausted
    }
    pcre2_set_heap_limit_8(limits, 256 << 10)  // KiB
    self.match = match
    self.limits = limits
    self.context = context
    stepsLeft = 1_000_000 &+ min(length, 1 << 40) &* 32
  }

  deinit {
    pcre2_match_context_free_8(limits)
    pcre2_match_data_free_8(match)
  }

  /// The leftmost match that starts at `start` or after. `text` must be valid UTF-8.
  mutating func find(
    _ regex: Regex, in text: UnsafeBufferPointer<UInt8>, from start: Int
  ) throws(TamisError) -> Range<Int>? {
    switch try attempt(regex, text, start, steps: RegexMatcher.freeSteps, anchored: false) {
    case .match(let range): return range
    case .noMatch: return nil
    case .tooManySteps: break
    }
    // Some start position needs more: from here one at a time, each with as many steps as it takes, on the budget.
    var position = start
    while position <= text.count {
      if let range = try findHere(regex, text, position) { return range }
      position &+= 1
      while position < text.count, text[position] & 0xC0 == 0x80 { position &+= 1 }
    }
    return nil
  }

  /// A match that starts exactly at `position`.
  private mutating func findHere(
    _ regex: Regex, _ text: UnsafeBufferPointer<UInt8>, _ position: Int
  ) throws(TamisError) -> Range<Int>? {
    var steps = RegexMatcher.freeSteps
    while stepsLeft > 0 {
      switch try attempt(regex, text, position, steps: steps, anchored: true) {
      case .match(let range): return range
      case .noMatch: return nil
      case .tooManySteps:
        stepsLeft &-= steps
        steps = min(steps &* 8, stepsLeft)
      }
    }
    throw RegexMatcher.exhausted
  }

  private static let exhausted = TamisError(
    .unsupported, "tokenizer: its pre-tokenizer pattern takes too many steps on this text")

  private enum Outcome {
    case match(Range<Int>)
    case noMatch
    case tooManySteps
  }

  private func attempt(
    _ regex: Regex, _ text: UnsafeBufferPointer<UInt8>, _ start: Int, steps: Int, anchored: Bool
  ) throws(TamisError) -> Outcome {
    pcre2_set_match_limit_8(limits, UInt32(clamping: steps))
    let options = UInt32(PCRE2_NO_UTF_CHECK) | (anchored ? UInt32(PCRE2_ANCHORED) : 0)
    let result = pcre2_match_8(regex.code, text.baseAddress, text.count, start, options, match, limits)
    switch result {
    case 0...: break
    case PCRE2_ERROR_NOMATCH: return .noMatch
    case PCRE2_ERROR_MATCHLIMIT: return .tooManySteps
    case PCRE2_ERROR_NOMEMORY: throw RegexMemory.exhausted
    case PCRE2_ERROR_HEAPLIMIT: throw RegexMatcher.exhausted
    default: throw TamisError(.internal, "tokenizer: PCRE2 error \(result)")
    }
    guard let ends = pcre2_get_ovector_pointer_8(match), ends[0] <= ends[1], ends[1] <= text.count else {
      throw TamisError(.internal, "tokenizer: a match out of bounds")
    }
    return .match(ends[0]..<ends[1])
  }
}
