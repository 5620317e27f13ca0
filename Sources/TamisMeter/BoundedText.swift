// Text that grows up to a limit and then refuses, with the escapes of the formats we write. Decimal and whole numbers
// are written digit by digit; a binary number is written as the shortest text that reads back as itself.

package import TamisRuntime

package struct BoundedText: Sendable {
  package private(set) var text = ""
  private let limit: Int

  package static let usualLimit = 1 << 20

  package init(limit: Int = usualLimit) { self.limit = limit }

  package mutating func append(_ part: String) throws(TamisError) {
    guard part.utf8.count <= limit &- text.utf8.count else {
      throw TamisError(.full, "export: the text is longer than \(limit) bytes")
    }
    text += part
  }

  /// A JSON string (RFC 8259) with its quotes.
  package static func json(_ value: String) -> String {
    escape(value) { scalar in
      switch scalar {
      case "\"": "\\\""
      case "\\": "\\\\"
      case "\n": "\\n"
      default: scalar.value < 0x20 ? "\\u00" + hex(UInt8(truncatingIfNeeded: scalar.value)) : nil
      }
    }
  }

  /// A Prometheus label value with its quotes.
  package static func prometheus(_ value: String) -> String {
    escape(value) { scalar in
      switch scalar {
      case "\"": "\\\""
      case "\\": "\\\\"
      case "\n": "\\n"
      default: nil
      }
    }
  }

  /// A CSV field (RFC 4180), quoted where it must be.
  package static func csv(_ value: String) -> String {
    guard value.utf8.contains(where: { $0 == 34 || $0 == 44 || $0 == 10 || $0 == 13 }) else { return value }
    return escape(value) { $0 == "\"" ? "\"\"" : nil }
  }

  private static func escape(_ value: String, _ replacement: (Unicode.Scalar) -> String?) -> String {
    var escaped = "\""
    for scalar in value.unicodeScalars {
      if let text = replacement(scalar) { escaped += text } else { escaped.unicodeScalars.append(scalar) }
    }
    return escaped + "\""
  }

  private static func hex(_ byte: UInt8) -> String {
    let digits = String(byte, radix: 16)
    return digits.utf8.count == 1 ? "0" + digits : digits
  }
}
