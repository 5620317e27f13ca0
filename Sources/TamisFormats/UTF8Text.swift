// UTF-8 as bytes: validation, repair, and holding back the unfinished character of a stream.
// It refuses nothing: what is invalid is located or replaced, and the caller decides.

package import TamisRuntime

package enum UTF8Text {
  /// What starts at a position: a whole character, or the longest prefix of one that could have become valid
  /// (Unicode's "maximal subpart"; at least one byte).
  package enum Unit: Equatable {
    case scalar(Unicode.Scalar, length: Int)
    case invalid(length: Int, truncated: Bool)
  }

  /// `text` must hold at least one byte at `position`.
  package static func unit(_ text: UnsafeRawBufferPointer, at position: Int) -> Unit {
    guard position >= 0, position < text.count else { return .invalid(length: 1, truncated: true) }
    let lead = text[position]
    if lead < 0x80 { return .scalar(Unicode.Scalar(lead), length: 1) }
    // The second byte's range excludes overlong forms, surrogates and what lies past U+10FFFF (Unicode table 3-7).
    let length: Int
    var low: UInt8 = 0x80
    var high: UInt8 = 0xBF
    switch lead {
    case 0xC2...0xDF: length = 2
    case 0xE0: (length, low) = (3, 0xA0)
    case 0xED: (length, high) = (3, 0x9F)
    case 0xE1...0xEF: length = 3
    case 0xF0: (length, low) = (4, 0x90)
    case 0xF1...0xF3: length = 4
    case 0xF4: (length, high) = (4, 0x8F)
    default: return .invalid(length: 1, truncated: false)
    }
    var value = UInt32(lead) & (0x7F >> UInt32(length))
    var read = 1
    while read < length {
      guard position &+ read < text.count else { return .invalid(length: read, truncated: true) }
      let byte = text[position &+ read]
      guard byte >= low, byte <= high else { return .invalid(length: read, truncated: false) }
      value = value << 6 | UInt32(byte & 0x3F)
      (low, high) = (0x80, 0xBF)
      read &+= 1
    }
    guard let scalar = Unicode.Scalar(value) else { return .invalid(length: 1, truncated: false) }
    return .scalar(scalar, length: length)
  }

  /// The offset of the first byte that is not UTF-8, or nil.
  package static func firstInvalid(_ text: UnsafeRawBufferPointer) -> Int? {
    var position = 0
    while position < text.count {
      if text[position] < 0x80 {
        position &+= 1
        continue
      }
      guard case .scalar(_, let length) = unit(text, at: position) else { return position }
      position &+= length
    }
    return nil
  }

  /// Appends `text` with every invalid part replaced by U+FFFD, as Python's `errors="replace"` does.
  package static func appendRepaired(
    _ text: UnsafeRawBufferPointer, to out: inout GrowableBuffer<UInt8>
  ) throws(TamisError) {
    try out.reserve(out.count &+ text.count)
    var position = 0
    while position < text.count {
      switch unit(text, at: position) {
      case .scalar(_, let length):
        var read = 0
        while read < length {
          try out.append(text[position &+ read])
          read &+= 1
        }
        position &+= length
      case .invalid(let length, _):
        try out.append(0xEF)
        try out.append(0xBF)
        try out.append(0xBD)
        position &+= length
      }
    }
  }

  /// How many bytes at the end of `text` are the beginning of a character still to come (0...3).
  package static func unfinishedTail(_ text: UnsafeRawBufferPointer) -> Int {
    var back = 1
    while back <= 3, back <= text.count {
      let byte = text[text.count &- back]
      if byte >= 0xC0 {
        if case .invalid(let length, truncated: true) = unit(text, at: text.count &- back), length == back {
          return back
        }
        return 0
      }
      if byte < 0x80 { return 0 }
      back &+= 1
    }
    return 0
  }

  /// Appends a scalar's bytes.
  package static func append(_ scalar: Unicode.Scalar, to out: inout GrowableBuffer<UInt8>) throws(TamisError) {
    for byte in UTF8.encode(scalar) ?? Unicode.UTF8.encodedReplacementCharacter { try out.append(byte) }
  }
}
