// The byte-level alphabet: each byte is written as one visible character in a vocabulary. Bytes that are visible in
// Latin-1 stand for themselves; the others, in order, for U+0100 onwards (GPT-2's `bytes_to_unicode`).

enum ByteAlphabet {
  @inline(__always)
  private static func isVisible(_ value: UInt32) -> Bool {
    (0x21...0x7E).contains(value) || (0xA1...0xAC).contains(value) || (0xAE...0xFF).contains(value)
  }

  /// The character's number for a byte: below 0x200.
  static func character(of byte: UInt8) -> UInt32 {
    let value = UInt32(byte)
    if isVisible(value) { return value }
    switch value {
    case 0...0x20: return 0x100 &+ value
    case 0x7F...0xA0: return 0x121 &+ (value &- 0x7F)
    default: return 0x143
    }
  }

  /// The byte for a character, nil outside the alphabet.
  static func byte(of character: UInt32) -> UInt8? {
    switch character {
    case 0x100...0x120: return UInt8(truncatingIfNeeded: character &- 0x100)
    case 0x121...0x142: return UInt8(truncatingIfNeeded: character &- 0x121 &+ 0x7F)
    case 0x143: return 0xAD
    default: return isVisible(character) ? UInt8(truncatingIfNeeded: character) : nil
    }
  }
}
