// PCRE2 for the splits of a tokenizer. A compiled pattern is shared by all threads; what a search writes to belongs to
// one matcher. It refuses patterns that PCRE2 does not know, and searches that take more steps than a budget
// proportional to the text: no pattern can hang the host.
//
// No just-in-time compilation: it would need executable memory in the host's process, and tokenizing is a thousandth
// of prefill either way.

import CPCRE2
import TamisRuntime

final class Regex: @unchecked Sendable {
  fileprivate let code: OpaquePointer

  /// `pattern` in PCRE2's own syntax (see RegexDialect).
  init(_ pattern: String) throws(TamisError) {
    guard let context = pcre2_compile_context_create_8(nil) else { throw TamisError(.memory, "out of memory") }
    defer { pcre2_compile_context_free_8(context) }
    pcre2_set_newline_8(context, UInt32(PCRE2_NEWLINE_LF))
    pcre2_set_max_pattern_length_8(context, 65536)
    var error: Int32 = 0
    var offset = 0
    var pattern = pattern
    let options = UInt32(PCRE2_UTF) | UInt32(PCRE2_UCP) | UInt32(PCRE2_NEVER_BACKSLASH_C)
    let compiled = pattern.withUTF8 { pcre2_compile_8($0.baseAddress, $0.count, options, &error, &offset, context) }
    guard let compiled else {
      throw TamisError(.unsupported, "pre-tokenizer pattern: PCRE2 error \(error) at byte \(offset) of \"\(pattern)\"")
    }
    code = compiled
  }

  deinit { pcre2_code_free_8(code) }
}

/// The state of the searches of one call.
struct RegexMatcher: ~Copyable {
  private let match: OpaquePointer
  private let context: OpaquePointer
  private var stepsLeft: Int

  private static let firstStepLimit = 10_000

  /// For texts of `length` bytes altogether.
  init(length: Int) throws(TamisError) {
    guard let match = pcre2_match_data_create_8(1, nil) else { throw TamisError(.memory, "out of memory") }
    guard let context = pcre2_match_context_create_8(nil) else {
      pcre2_match_data_free_8(match)
      throw TamisError(.memory, "out of memory")
    }
    pcre2_set_heap_limit_8(context, 256 << 10)  // KiB
    self.match = match
    self.context = context
    stepsLeft = 50_000_000 &+ min(length, 1 << 40) &* 64
  }

  deinit {
    pcre2_match_context_free_8(context)
    pcre2_match_data_free_8(match)
  }

  /// The leftmost match that starts at `start` or after. `text` must be valid UTF-8.
  mutating func find(
    _ regex: Regex, in text: UnsafeBufferPointer<UInt8>, from start: Int
  ) throws(TamisError) -> Range<Int>? {
    // A search is first given few steps; only one that needs more is charged to the budget. So an ordinary pattern
    // is never charged, and the sum over a text stays bounded for every pattern.
    var limit = RegexMatcher.firstStepLimit
    while true {
      pcre2_set_match_limit_8(context, UInt32(clamping: limit))
      let result = pcre2_match_8(
        regex.code, text.baseAddress, text.count, start, UInt32(PCRE2_NO_UTF_CHECK), match, context)
      if result >= 0 { break }
      switch result {
      case PCRE2_ERROR_NOMATCH: return nil
      case PCRE2_ERROR_NOMEMORY: throw TamisError(.memory, "out of memory")
      case PCRE2_ERROR_MATCHLIMIT where stepsLeft > 0:
        stepsLeft &-= limit
        limit = min(limit &* 8, Int(UInt32.max))
      case PCRE2_ERROR_MATCHLIMIT, PCRE2_ERROR_HEAPLIMIT, PCRE2_ERROR_DEPTHLIMIT:
        throw TamisError(.unsupported, "tokenizer: its pre-tokenizer pattern takes too many steps on this text")
      default: throw TamisError(.internal, "tokenizer: PCRE2 error \(result)")
      }
    }
    guard let ends = pcre2_get_ovector_pointer_8(match), ends[0] <= ends[1], ends[1] <= text.count else {
      throw TamisError(.internal, "tokenizer: a match out of bounds")
    }
    return ends[0]..<ends[1]
  }
}
