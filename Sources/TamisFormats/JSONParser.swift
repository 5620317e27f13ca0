// The parser behind JSONDocument: one pass over the bytes, no recursion, every position checked against the end.

import Glibc
import TamisRuntime

struct JSONParser: ~Copyable {
  private let text: UnsafeRawBufferPointer
  private let name: String
  private var position = 0
  private var nodes: GrowableBuffer<JSONNode>
  private var open: GrowableBuffer<Int>  // node indices of the containers around `position`
  private var keys: GrowableBuffer<UInt32>  // hash table of one object's keys
  private var keyText: GrowableBuffer<UInt8>
  private var otherKeyText: GrowableBuffer<UInt8>

  static func parse(
    _ text: UnsafeRawBufferPointer, name: String, into nodes: inout GrowableBuffer<JSONNode>
  ) throws(TamisError) {
    var parser = JSONParser(text: text, name: name, nodes.context)
    try parser.run()
    nodes = parser.takeNodes()
  }

  private init(text: UnsafeRawBufferPointer, name: String, _ context: Context) {
    self.text = text
    self.name = name
    nodes = GrowableBuffer(context)
    open = GrowableBuffer(context)
    keys = GrowableBuffer(context)
    keyText = GrowableBuffer(context)
    otherKeyText = GrowableBuffer(context)
  }

  private consuming func takeNodes() -> GrowableBuffer<JSONNode> { nodes }

  private func failure(_ what: String, at offset: Int) -> TamisError {
    TamisError(.format, "\(name): byte \(offset): \(what)")
  }

  private func byte(at offset: Int) -> UInt8? { offset < text.count ? text[offset] : nil }

  private mutating func skipSpace() {
    while position < text.count {
      switch text[position] {
      case 0x20, 0x09, 0x0A, 0x0D: position &+= 1
      default: return
      }
    }
  }

  private mutating func run() throws(TamisError) {
    skipSpace()
    try value()
    while open.count > 0 { try continueContainer() }
    skipSpace()
    guard position == text.count else { throw failure("text after the end of the JSON value", at: position) }
  }

  // MARK: values

  /// A scalar, or the opening of a container, which `continueContainer` then fills.
  private mutating func value() throws(TamisError) {
    switch byte(at: position) {
    case UInt8(ascii: "{"): try openContainer(.object)
    case UInt8(ascii: "["): try openContainer(.array)
    case UInt8(ascii: "\""): try string()
    case UInt8(ascii: "t"): try literal("true", .true)
    case UInt8(ascii: "f"): try literal("false", .false)
    case UInt8(ascii: "n"): try literal("null", .null)
    case let start? where start == UInt8(ascii: "-") || (start >= 0x30 && start <= 0x39): try number()
    case nil: throw failure("the JSON text ends where a value was expected", at: position)
    default: throw failure("expected a JSON value", at: position)
    }
  }

  private mutating func appendScalar(
    _ kind: JSONNode.Kind, from start: Int, length: Int, escaped: Bool = false
  ) throws(TamisError) {
    try nodes.append(
      JSONNode(
        kind: kind, escaped: escaped, start: UInt32(truncatingIfNeeded: start),
        length: UInt32(truncatingIfNeeded: length), next: UInt32(truncatingIfNeeded: nodes.count &+ 1)))
  }

  private mutating func literal(_ word: StaticString, _ kind: JSONNode.Kind) throws(TamisError) {
    let length = word.utf8CodeUnitCount
    var matched = 0
    while matched < length, byte(at: position &+ matched) == word.utf8Start[matched] { matched &+= 1 }
    guard matched == length else { throw failure("expected a JSON value", at: position) }
    try appendScalar(kind, from: position, length: length)
    position &+= length
  }

  // MARK: containers

  private mutating func openContainer(_ kind: JSONNode.Kind) throws(TamisError) {
    guard open.count < JSONDocument.depthLimit else {
      throw failure("more than \(JSONDocument.depthLimit) levels of nesting", at: position)
    }
    try open.append(nodes.count)
    try nodes.append(JSONNode(kind: kind, start: UInt32(truncatingIfNeeded: position), length: 0, next: 0))
    position &+= 1
  }

  /// One more element or member of the innermost container, or its end.
  private mutating func continueContainer() throws(TamisError) {
    guard let index = open.element(at: open.count &- 1), var node = nodes.element(at: index) else { return }
    let isObject = node.kind == .object
    skipSpace()
    if byte(at: position) == (isObject ? UInt8(ascii: "}") : UInt8(ascii: "]")) {
      position &+= 1
      node.next = UInt32(truncatingIfNeeded: nodes.count)
      nodes.set(node, at: index)
      open.truncate(to: open.count &- 1)
      if isObject { try refuseDuplicateKeys(of: index, members: Int(node.length)) }
      return
    }
    if node.length > 0 {
      guard byte(at: position) == UInt8(ascii: ",") else {
        throw failure(isObject ? "expected ',' or '}'" : "expected ',' or ']'", at: position)
      }
      position &+= 1
      skipSpace()
    }
    node.length &+= 1
    nodes.set(node, at: index)
    if isObject {
      guard byte(at: position) == UInt8(ascii: "\"") else { throw failure("expected a key", at: position) }
      try string()
      skipSpace()
      guard byte(at: position) == UInt8(ascii: ":") else { throw failure("expected ':'", at: position) }
      position &+= 1
      skipSpace()
    }
    try value()
  }

  // MARK: numbers

  private mutating func number() throws(TamisError) {
    let start = position
    var plainDigits = 0
    if byte(at: position) == UInt8(ascii: "-") { position &+= 1 }
    if byte(at: position) == UInt8(ascii: "0") {
      position &+= 1
    } else {
      plainDigits = try digits()
    }
    if byte(at: position) == UInt8(ascii: ".") {
      position &+= 1
      _ = try digits()
      plainDigits = Int.max
    }
    if let e = byte(at: position), e | 0x20 == UInt8(ascii: "e") {
      position &+= 1
      if let sign = byte(at: position), sign == UInt8(ascii: "+") || sign == UInt8(ascii: "-") { position &+= 1 }
      _ = try digits()
      plainDigits = Int.max
    }
    if plainDigits > 18 {
      let lexeme = UnsafeRawBufferPointer(rebasing: text[start..<position])
      guard JSONParser.double(lexeme) != nil else { throw failure("a number out of range", at: start) }
    }
    try appendScalar(.number, from: start, length: position &- start)
  }

  private mutating func digits() throws(TamisError) -> Int {
    let start = position
    while let digit = byte(at: position), digit >= 0x30, digit <= 0x39 { position &+= 1 }
    guard position > start else { throw failure("expected a digit", at: position) }
    return position &- start
  }

  /// The nearest Double; nil where it is infinite or written with more than 512 characters.
  static func double(_ lexeme: UnsafeRawBufferPointer) -> Double? {
    guard lexeme.count <= 512, let value = Double(String(decoding: lexeme, as: UTF8.self)) else { return nil }
    return value.isFinite ? value : nil
  }

  // MARK: strings

  private mutating func string() throws(TamisError) {
    position &+= 1
    let start = position
    var escaped = false
    while true {
      guard position < text.count else { throw failure("a string without end", at: start &- 1) }
      let byte = text[position]
      if byte == UInt8(ascii: "\"") { break }
      if byte == UInt8(ascii: "\\") {
        escaped = true
        _ = try escape()
      } else if byte < 0x20 {
        throw failure("a control character in a string", at: position)
      } else if byte < 0x80 {
        position &+= 1
      } else {
        guard case .scalar(_, let length) = UTF8Text.unit(text, at: position) else {
          throw failure("invalid UTF-8", at: position)
        }
        position &+= length
      }
    }
    try appendScalar(.string, from: start, length: position &- start, escaped: escaped)
    position &+= 1
  }

  /// Consumes the escape at `position`.
  private mutating func escape() throws(TamisError) -> Unicode.Scalar {
    guard let (scalar, length) = JSONParser.escape(text, at: position) else {
      throw failure("an invalid escape or an unpaired surrogate", at: position)
    }
    position &+= length
    return scalar
  }

  private static func escape(
    _ text: UnsafeRawBufferPointer, at position: Int
  ) -> (scalar: Unicode.Scalar, length: Int)? {
    guard position &+ 1 < text.count else { return nil }
    switch text[position &+ 1] {
    case UInt8(ascii: "\""): return ("\"", 2)
    case UInt8(ascii: "\\"): return ("\\", 2)
    case UInt8(ascii: "/"): return ("/", 2)
    case UInt8(ascii: "b"): return ("\u{8}", 2)
    case UInt8(ascii: "f"): return ("\u{C}", 2)
    case UInt8(ascii: "n"): return ("\n", 2)
    case UInt8(ascii: "r"): return ("\r", 2)
    case UInt8(ascii: "t"): return ("\t", 2)
    case UInt8(ascii: "u"):
      guard let first = unit16(text, at: position) else { return nil }
      if let scalar = Unicode.Scalar(first) { return (scalar, 6) }
      guard first < 0xDC00, let second = unit16(text, at: position &+ 6), second >= 0xDC00, second <= 0xDFFF,
        let scalar = Unicode.Scalar(0x10000 &+ (first &- 0xD800) << 10 &+ (second &- 0xDC00))
      else { return nil }
      return (scalar, 12)
    default: return nil
    }
  }

  /// The 16 bits of `\uXXXX` at `position`.
  private static func unit16(_ text: UnsafeRawBufferPointer, at position: Int) -> UInt32? {
    guard position &+ 6 <= text.count, text[position] == UInt8(ascii: "\\"),
      text[position &+ 1] == UInt8(ascii: "u")
    else { return nil }
    var value: UInt32 = 0
    var read = 2
    while read < 6 {
      let byte = text[position &+ read]
      switch byte {
      case 0x30...0x39: value = value << 4 | UInt32(byte &- 0x30)
      case 0x41...0x46, 0x61...0x66: value = value << 4 | UInt32((byte | 0x20) &- 0x61 &+ 10)
      default: return nil
      }
      read &+= 1
    }
    return value
  }

  /// Appends a string's content with its escapes resolved; the content has been parsed before.
  static func appendUnescaped(
    _ content: UnsafeRawBufferPointer, to out: inout GrowableBuffer<UInt8>
  ) throws(TamisError) {
    var position = 0
    while position < content.count {
      if content[position] == UInt8(ascii: "\\"), let (scalar, length) = escape(content, at: position) {
        try UTF8Text.append(scalar, to: &out)
        position &+= length
      } else {
        try out.append(content[position])
        position &+= 1
      }
    }
  }

  // MARK: duplicate keys

  /// Keys are compared after their escapes are resolved. The table is hashed with the process's random seed, so
  /// that no file can make the search quadratic.
  private mutating func refuseDuplicateKeys(of object: Int, members: Int) throws(TamisError) {
    guard members > 1 else { return }
    var slots = 4
    while slots < members &* 2 { slots &*= 2 }
    keys.truncate(to: 0)
    try keys.append(repeating: 0, count: slots)
    var index = object &+ 1
    var visited = 0
    while visited < members, let key = nodes.element(at: index) {
      try JSONParser.resolve(key, of: text, into: &keyText)
      var hasher = Hasher()
      hasher.combine(bytes: UnsafeRawBufferPointer(keyText.elements))
      var slot = hasher.finalize() & (slots &- 1)
      while let taken = keys.element(at: slot), taken != 0, let other = nodes.element(at: Int(taken)) {
        try JSONParser.resolve(other, of: text, into: &otherKeyText)
        if keyText.elements.elementsEqual(otherKeyText.elements) {
          throw failure("a key that the object already has", at: Int(key.start))
        }
        slot = (slot &+ 1) & (slots &- 1)
      }
      keys.set(UInt32(truncatingIfNeeded: index), at: slot)
      index = nodes.element(at: index &+ 1).map { Int($0.next) } ?? Int.max
      visited &+= 1
    }
  }

  private static func resolve(
    _ node: JSONNode, of text: UnsafeRawBufferPointer, into out: inout GrowableBuffer<UInt8>
  ) throws(TamisError) {
    out.truncate(to: 0)
    let content = UnsafeRawBufferPointer(rebasing: text[Int(node.start)..<Int(node.start &+ node.length)])
    try appendUnescaped(content, to: &out)
  }
}
