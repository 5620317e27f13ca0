// What DeepSeek-V3.2 wrote, taken apart: the way back of ChatEncoding. A reply is
//
//   reasoning </think>   only where the model was to think
//   content
//   a block of calls (ChatTools.swift), behind an empty line, if it calls
//   the end-of-sentence token, which may be missing: a generation ends there
//
// and becomes the JSON of an assistant's message, {"role", "content", "reasoning_content", "tool_calls"}, in the form
// that the encoding takes, written as Python's json.dumps writes it. As encoding_dsv32.py, it reads what is well-formed
// and mends nothing: a mark of the encoding inside reasoning or content, a call that is cut off, a parameter given twice
// and anything behind the end are refused with the byte where something else was expected. Stricter than that file, it
// refuses calls that end with the text, and parameters that say they are JSON and are not.

package import TamisFormats
package import TamisRuntime

package enum ChatReply {
  private static let bar: ReplyMark = "｜DSML｜"
  private static let begin: ReplyMark = "<｜begin▁of▁sentence｜>"
  private static let end: ReplyMark = "<｜end▁of▁sentence｜>"
  private static let think: ReplyMark = "<think>"
  private static let thinkEnd: ReplyMark = "</think>"
  private static let calls: ReplyMark = "\n\n<｜DSML｜function_calls"
  private static let callsEnd: ReplyMark = "</｜DSML｜function_calls>"
  private static let call: ReplyMark = "<｜DSML｜invoke"
  private static let callEnd: ReplyMark = "</｜DSML｜invoke"
  private static let parameter: ReplyMark = "<｜DSML｜parameter"
  private static let parameterEnd: ReplyMark = "/｜DSML｜parameter"  // as the original, "<" apart

  /// Appends the message as JSON; a text that fails is left as it was. Invalid UTF-8 counts as U+FFFD.
  package static func append(
    _ reply: UnsafeRawBufferPointer, thinking: Bool, to json: inout GrowableBuffer<UInt8>
  ) throws(TamisError) {
    let length = json.count
    do throws(TamisError) {
      if UTF8Text.firstInvalid(reply) == nil {
        try add(reply, thinking: thinking, to: &json)
      } else {
        var repaired = GrowableBuffer<UInt8>(json.context)
        try UTF8Text.appendRepaired(reply, to: &repaired)
        try add(UnsafeRawBufferPointer(repaired.elements), thinking: thinking, to: &json)
      }
    } catch {
      json.truncate(to: length)
      throw error
    }
  }

  private static func add(
    _ reply: UnsafeRawBufferPointer, thinking: Bool, to json: inout GrowableBuffer<UInt8>
  ) throws(TamisError) {
    var scanner = ReplyScanner(reply)
    var reasoning = 0..<0
    if thinking {
      let (part, mark) = scanner.read(to: thinkEnd, calls)
      guard mark == .first else { throw failure(part.upperBound, "</think> behind the reasoning") }
      reasoning = part
    }
    let (content, mark) = scanner.read(to: end, calls)
    for part in [reasoning, content] {
      if let found = scanner.first(of: [begin, end, think, thinkEnd, bar], in: part) {
        throw failure(found, "a text without marks of the encoding")
      }
    }
    try json.append("{\"role\": \"assistant\", \"content\": ")
    try json.appendQuoted(scanner.bytes(content))
    try json.append(", \"reasoning_content\": ")
    try json.appendQuoted(scanner.bytes(reasoning))
    try json.append(", \"tool_calls\": [")
    if mark == .second {
      try addCalls(&scanner, to: &json)
      if !scanner.isAtEnd, !scanner.skip(end) { throw failure(scanner.position, "the end behind the calls") }
    }
    try json.append("]}")
    guard scanner.isAtEnd else { throw failure(scanner.position, "nothing behind the end") }
  }

  private static func failure(_ byte: Int, _ expected: String) -> TamisError {
    TamisError(.format, "reply: byte \(byte): expected \(expected)")
  }

  /// Behind "<｜DSML｜function_calls", up to and with the end of the block.
  private static func addCalls(
    _ scanner: inout ReplyScanner, to json: inout GrowableBuffer<UInt8>
  ) throws(TamisError) {
    var number = 0
    while true {
      let (gap, mark) = scanner.read(to: call, callsEnd)
      guard mark != .none, scanner.isBracketAndLine(gap) else {
        throw failure(gap.lowerBound, "\">\", a new line, and a call or the end of the calls")
      }
      if mark == .second { return }
      if number > 0 { try json.append(", ") }
      try addCall(&scanner, number, to: &json)
      number &+= 1
    }
  }

  /// Behind "<｜DSML｜invoke", up to and with "</｜DSML｜invoke".
  private static func addCall(
    _ scanner: inout ReplyScanner, _ number: Int, to json: inout GrowableBuffer<UInt8>
  ) throws(TamisError) {
    var (head, mark) = scanner.read(to: parameter, callEnd)
    guard mark != .none, let name = scanner.callName(head) else {
      throw failure(head.lowerBound, "name=\"...\">, a new line, and parameters or the end of the call")
    }
    var arguments = GrowableBuffer<UInt8>(json.context)
    try arguments.append("{")
    while mark == .first {
      if arguments.count > 1 { try arguments.append(", ") }
      try addParameter(&scanner, to: &arguments)
      let gap: Range<Int>
      (gap, mark) = scanner.read(to: parameter, callEnd)
      guard mark != .none, scanner.isBracketAndLine(gap) else {
        throw failure(gap.lowerBound, "\">\", a new line, and a parameter or the end of the call")
      }
    }
    try arguments.append("}")
    // The parser also finds a parameter that stands twice.
    let bytes = UnsafeRawBufferPointer(arguments.elements)
    _ = try JSONDocument(copying: bytes, name: "reply: arguments of call \(number)", json.context)
    try json.append("{\"type\": \"function\", \"function\": {\"name\": ")
    try json.appendQuoted(scanner.bytes(name))
    try json.append(", \"arguments\": ")
    try json.appendQuoted(bytes)
    try json.append("}}")
  }

  /// Behind "<｜DSML｜parameter", up to and with "</｜DSML｜parameter", as a member of an object.
  private static func addParameter(
    _ scanner: inout ReplyScanner, to arguments: inout GrowableBuffer<UInt8>
  ) throws(TamisError) {
    let (whole, mark) = scanner.read(to: parameterEnd, parameterEnd)
    guard mark != .none, let parts = scanner.parameter(whole) else {
      throw failure(whole.lowerBound, "name=\"...\" string=\"true\" or \"false\">, a value and its end")
    }
    try arguments.appendQuoted(scanner.bytes(parts.name))
    try arguments.append(": ")
    let value = scanner.bytes(parts.value)
    if parts.isString { return try arguments.appendQuoted(value) }
    // On its own, so that a value cannot bring members of its own.
    _ = try JSONDocument(copying: value, name: "reply: the value at byte \(parts.value.lowerBound)", arguments.context)
    try arguments.append(contentsOf: value.assumingMemoryBound(to: UInt8.self))
  }
}

/// Bytes of the program. (A StaticString checks on every use that it has any.)
private struct ReplyMark: ExpressibleByStringLiteral, @unchecked Sendable {
  let start: UnsafePointer<UInt8>
  let count: Int

  init(stringLiteral text: StaticString) {
    start = text.utf8Start
    count = text.utf8CodeUnitCount
  }
}

/// A place in a reply. Ranges are of bytes and lie inside it.
private struct ReplyScanner {
  enum Mark { case none, first, second }

  private let text: UnsafeRawBufferPointer
  private(set) var position = 0

  init(_ text: UnsafeRawBufferPointer) { self.text = text }

  var isAtEnd: Bool { position == text.count }

  func bytes(_ range: Range<Int>) -> UnsafeRawBufferPointer { UnsafeRawBufferPointer(rebasing: text[range]) }

  /// What stands before the nearer of two marks, and which one; goes behind it. `.none`: all the rest.
  mutating func read(to first: ReplyMark, _ second: ReplyMark) -> (Range<Int>, Mark) {
    let start = position
    while position < text.count {
      let part = Range(uncheckedBounds: (start, position))
      if skip(first) { return (part, .first) }
      if skip(second) { return (part, .second) }
      position &+= 1
    }
    return (Range(uncheckedBounds: (start, position)), .none)
  }

  mutating func skip(_ mark: ReplyMark) -> Bool {
    guard has(mark, at: position, before: text.count) else { return false }
    position &+= mark.count
    return true
  }

  private func has(_ mark: ReplyMark, at start: Int, before end: Int) -> Bool {
    let count = mark.count
    guard start >= 0, end &- start >= count, text[start] == mark.start[0] else { return false }
    var i = 1
    while i < count, text[start &+ i] == mark.start[i] { i &+= 1 }
    return i == count
  }

  private func find(_ mark: ReplyMark, in range: Range<Int>) -> Int? {
    var at = range.lowerBound
    while at < range.upperBound {
      if has(mark, at: at, before: range.upperBound) { return at }
      at &+= 1
    }
    return nil
  }

  func first(of marks: [ReplyMark], in range: Range<Int>) -> Int? {
    var nearest: Int?
    for mark in marks { if let at = find(mark, in: range) { nearest = min(nearest ?? at, at) } }
    return nearest
  }

  func isBracketAndLine(_ range: Range<Int>) -> Bool {
    range.upperBound &- range.lowerBound == 2 && has(">\n", at: range.lowerBound, before: range.upperBound)
  }

  /// `name="NAME">` and one new line, two where no parameter follows.
  func callName(_ range: Range<Int>) -> Range<Int>? {
    var start = range.lowerBound
    while start < range.upperBound, [0x20, 0x09, 0x0A, 0x0D].contains(text[start]) { start &+= 1 }
    guard has("name=\"", at: start, before: range.upperBound) else { return nil }
    start &+= 6
    for ending: ReplyMark in ["\">\n", "\">\n\n"] {
      let end = range.upperBound &- ending.count
      if end >= start, has(ending, at: end, before: range.upperBound) { return Range(uncheckedBounds: (start, end)) }
    }
    return nil
  }

  /// ` name="NAME" string="true or false">VALUE`; NAME ends where the rest first follows.
  func parameter(_ range: Range<Int>) -> (name: Range<Int>, value: Range<Int>, isString: Bool)? {
    let last = range.upperBound &- 1
    guard has(" name=\"", at: range.lowerBound, before: last), text[last] == UInt8(ascii: "<") else { return nil }
    let start = range.lowerBound &+ 7
    let yes: ReplyMark = "\" string=\"true\">"
    let no: ReplyMark = "\" string=\"false\">"
    guard let end = first(of: [yes, no], in: Range(uncheckedBounds: (start, last))) else { return nil }
    let isString = has(yes, at: end, before: last)
    let value = end &+ (isString ? yes : no).count
    return (Range(uncheckedBounds: (start, end)), Range(uncheckedBounds: (value, last)), isString)
  }
}
