// The tokens that tokenizer.json lists outside the vocabulary's merges (`added_tokens`): special marks and whole words,
// found in the text before anything else is cut. Leftmost, then longest; the flags are the format's.
// It refuses nothing by itself: the loader checks what it adds.

import TamisRuntime

struct AddedToken: BitwiseCopyable, Sendable {
  var id: Int32
  var isSpecial = false
  var singleWord = false  // only where no word character touches it
  var stripsLeft = false  // takes the white space before it
  var stripsRight = false
}

struct AddedTokens: ~Copyable, Sendable {
  private struct Node: BitwiseCopyable {
    var byte: UInt8
    var child: UInt32 = 0
    var sibling: UInt32 = 0
    var token: UInt32 = 0  // index + 1
  }

  private var nodes: GrowableBuffer<Node>
  private var tokens: GrowableBuffer<AddedToken>
  private var starts: GrowableBuffer<Bool>  // by first byte

  init(_ context: Context) {
    nodes = GrowableBuffer(context)
    tokens = GrowableBuffer(context)
    starts = GrowableBuffer(context)
  }

  var isEmpty: Bool { tokens.count == 0 }

  mutating func add(_ token: AddedToken, content: UnsafeBufferPointer<UInt8>) throws(TamisError) {
    guard let first = content.first else { return }
    if nodes.count == 0 {
      try nodes.append(Node(byte: 0))
      try starts.append(repeating: false, count: 256)
    }
    starts.set(true, at: Int(first))
    var at = 0
    for byte in content { at = try child(of: at, byte) }
    try tokens.append(token)
    guard var node = nodes.element(at: at) else { return }
    node.token = UInt32(truncatingIfNeeded: tokens.count)
    nodes.set(node, at: at)
  }

  private mutating func child(of parent: Int, _ byte: UInt8) throws(TamisError) -> Int {
    if let found = findChild(of: parent, byte) { return found }
    guard var node = nodes.element(at: parent) else { return 0 }
    let created = nodes.count
    try nodes.append(Node(byte: byte, sibling: node.child))
    node.child = UInt32(truncatingIfNeeded: created)
    nodes.set(node, at: parent)
    return created
  }

  private func findChild(of parent: Int, _ byte: UInt8) -> Int? {
    var index = nodes.element(at: parent)?.child ?? 0
    while index != 0, let node = nodes.element(at: Int(index)) {
      if node.byte == byte { return Int(index) }
      index = node.sibling
    }
    return nil
  }

  /// The leftmost longest occurrence that starts at `start` or after.
  fileprivate func find(
    in text: UnsafeBufferPointer<UInt8>, from start: Int
  ) -> (token: AddedToken, range: Range<Int>)? {
    let starts = starts.elements
    guard starts.count == 256 else { return nil }
    var position = start
    while position < text.count {
      if starts[Int(text[position])], let (token, end) = longest(in: text, at: position) {
        return (token, position..<end)
      }
      position &+= 1
    }
    return nil
  }

  private func longest(in text: UnsafeBufferPointer<UInt8>, at start: Int) -> (token: AddedToken, end: Int)? {
    var best: (token: AddedToken, end: Int)?
    var node = 0
    var position = start
    while position < text.count, let next = findChild(of: node, text[position]) {
      node = next
      position &+= 1
      if let mark = nodes.element(at: node)?.token, mark > 0, let token = tokens.element(at: Int(mark) &- 1) {
        best = (token, position)
      }
    }
    return best
  }
}

/// Walks a text and yields its added tokens and the stretches between them.
struct AddedTokenScanner: ~Copyable {
  enum Section {
    case text(Range<Int>)
    case token(Int32)
  }

  private let treatSpecialAsText: Bool
  private var searchFrom = 0
  private var covered = 0
  private var pending: Int32?

  init(treatSpecialAsText: Bool) { self.treatSpecialAsText = treatSpecialAsText }

  mutating func next(_ added: borrowing AddedTokens, in text: UnsafeBufferPointer<UInt8>) -> Section? {
    if let token = pending {
      pending = nil
      return .token(token)
    }
    while let (token, range) = added.find(in: text, from: searchFrom) {
      searchFrom = range.upperBound
      if treatSpecialAsText, token.isSpecial { continue }
      if token.singleWord, Words.touches(text, range) { continue }
      let begin = token.stripsLeft ? max(Words.spaceStart(text, before: range.lowerBound), covered) : range.lowerBound
      let end = token.stripsRight ? Words.spaceEnd(text, after: range.upperBound) : range.upperBound
      defer { covered = end }
      guard covered < begin else { return .token(token.id) }
      pending = token.id
      return .text(covered..<begin)
    }
    searchFrom = text.count
    guard covered < text.count else { return nil }
    defer { covered = text.count }
    return .text(covered..<text.count)
  }
}

/// Word characters and white space around a position, in the sense of Unicode's regular expressions (UTS 18).
private enum Words {
  static func touches(_ text: UnsafeBufferPointer<UInt8>, _ range: Range<Int>) -> Bool {
    let before = scalar(text, endingAt: range.lowerBound)?.scalar
    let after = scalar(text, startingAt: range.upperBound)?.scalar
    return before.map(isWord) ?? false || after.map(isWord) ?? false
  }

  static func spaceStart(_ text: UnsafeBufferPointer<UInt8>, before end: Int) -> Int {
    var position = end
    while let (scalar, length) = scalar(text, endingAt: position), scalar.properties.isWhitespace {
      position &-= length
    }
    return position
  }

  static func spaceEnd(_ text: UnsafeBufferPointer<UInt8>, after start: Int) -> Int {
    var position = start
    while let (scalar, length) = scalar(text, startingAt: position), scalar.properties.isWhitespace {
      position &+= length
    }
    return position
  }

  private static func isWord(_ scalar: Unicode.Scalar) -> Bool {
    let properties = scalar.properties
    switch properties.generalCategory {
    case .nonspacingMark, .spacingMark, .enclosingMark, .decimalNumber, .connectorPunctuation: return true
    default: return properties.isAlphabetic || properties.isJoinControl
    }
  }

  private static func scalar(
    _ text: UnsafeBufferPointer<UInt8>, startingAt start: Int
  ) -> (scalar: Unicode.Scalar, length: Int)? {
    guard start >= 0, start < text.count,
      case .scalar(let scalar, let length) = UTF8Text.unit(UnsafeRawBufferPointer(text), at: start)
    else { return nil }
    return (scalar, length)
  }

  private static func scalar(
    _ text: UnsafeBufferPointer<UInt8>, endingAt end: Int
  ) -> (scalar: Unicode.Scalar, length: Int)? {
    var start = end &- 1
    while start > 0, end &- start < 4, text[start] & 0xC0 == 0x80 { start &-= 1 }
    return scalar(text, startingAt: start)
  }
}
