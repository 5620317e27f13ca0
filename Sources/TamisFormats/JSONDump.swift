// JSON values written as Python's json.dumps(value, ensure_ascii=False) writes them, byte for byte: what text made by
// Python code contains (a chat encoding's tools). A space behind comma and colon, members in their order, whole numbers
// as they are, others as the shortest text that reads back. It refuses nothing: the parser has.

package import TamisRuntime

extension JSONValue {
  package func appendDumped(to out: inout GrowableBuffer<UInt8>) throws(TamisError) {
    if isObject {
      try out.append(UInt8(ascii: "{"))
      var isFirst = true
      for (key, value) in members {
        if !isFirst { try out.append(", ") }
        isFirst = false
        try key.appendDumped(to: &out)
        try out.append(": ")
        try value.appendDumped(to: &out)
      }
      try out.append(UInt8(ascii: "}"))
    } else if isArray {
      try out.append(UInt8(ascii: "["))
      var isFirst = true
      for element in elements {
        if !isFirst { try out.append(", ") }
        isFirst = false
        try element.appendDumped(to: &out)
      }
      try out.append(UInt8(ascii: "]"))
    } else if isString {
      try appendQuoted(to: &out)
    } else if isNumber {
      try JSONNumber.append(bytes, double(), to: &out)
    } else if isBool {
      try out.append(bool() ? "true" : "false")
    } else {
      try out.append("null")
    }
  }

  private func appendQuoted(to out: inout GrowableBuffer<UInt8>) throws(TamisError) {
    var text = GrowableBuffer<UInt8>(out.context)
    try appendString(to: &text)
    try out.appendQuoted(UnsafeRawBufferPointer(text.elements))
  }
}

extension GrowableBuffer<UInt8> {
  package mutating func append(_ text: String) throws(TamisError) {
    for byte in text.utf8 { try append(byte) }
  }

  /// A JSON string of that text, which is UTF-8.
  package mutating func appendQuoted(_ text: UnsafeRawBufferPointer) throws(TamisError) {
    try append(UInt8(ascii: "\""))
    for byte in text {
      switch byte {
      case UInt8(ascii: "\""), UInt8(ascii: "\\"):
        try append(UInt8(ascii: "\\"))
        try append(byte)
      case 0x0A: try append("\\n")
      case 0x0D: try append("\\r")
      case 0x09: try append("\\t")
      case 0x08: try append("\\b")
      case 0x0C: try append("\\f")
      case 0..<0x20:
        try append("\\u00")
        try append(hexDigit(byte >> 4))
        try append(hexDigit(byte & 15))
      default: try append(byte)
      }
    }
    try append(UInt8(ascii: "\""))
  }
}

private enum JSONNumber {
  /// As Python writes the int or float that it reads: a text without fraction and exponent is an int.
  static func append(
    _ text: UnsafeRawBufferPointer, _ value: Double, to out: inout GrowableBuffer<UInt8>
  ) throws(TamisError) {
    var isWhole = true
    for byte in text where byte == UInt8(ascii: ".") || byte | 0x20 == UInt8(ascii: "e") { isWhole = false }
    if isWhole, value == 0 { return try out.append(UInt8(ascii: "0")) }
    if isWhole { return try out.append(contentsOf: text.assumingMemoryBound(to: UInt8.self)) }
    if value.sign == .minus { try out.append(UInt8(ascii: "-")) }
    var written = GrowableBuffer<UInt8>(out.context)
    try written.append(value.magnitude.description)
    try appendShortest(written.elements, to: &out)
  }

  /// Python's repr of a number that Swift has written: the digits are the same (the fewest that read back), the point
  /// is where Python has it, an exponent stands below 1e-4 and from 1e16 on.
  private static func appendShortest(
    _ text: UnsafeBufferPointer<UInt8>, to out: inout GrowableBuffer<UInt8>
  ) throws(TamisError) {
    var digits = GrowableBuffer<UInt8>(out.context)  // without zeros in front; the number is 0.digits x 10^scale
    var length = 0  // without zeros behind
    var (scale, exponent) = (0, 0)
    var (behindPoint, behindE, isSmall) = (false, false, false)
    for byte in text {
      switch byte {
      case UInt8(ascii: "."): behindPoint = true
      case UInt8(ascii: "e"): behindE = true
      case UInt8(ascii: "-"): isSmall = true
      case UInt8(ascii: "0")...UInt8(ascii: "9"):
        if behindE {
          exponent = exponent &* 10 &+ Int(byte & 15)
        } else if byte == UInt8(ascii: "0"), digits.count == 0 {
          if behindPoint { scale &-= 1 }
        } else {
          try digits.append(byte)
          if byte != UInt8(ascii: "0") { length = digits.count }
          if !behindPoint { scale &+= 1 }
        }
      default: break
      }
    }
    digits.truncate(to: length)
    guard length > 0 else { return try out.append("0.0") }
    let first = scale &- 1 &+ (isSmall ? 0 &- exponent : exponent)
    if first < -4 || first >= 16 { return try appendScientific(digits, exponent: first, to: &out) }
    if first < 0 { try out.append(UInt8(ascii: "0")) }
    var place = 0
    while place <= first {
      try out.append(digits.element(at: place) ?? UInt8(ascii: "0"))
      place &+= 1
    }
    try out.append(UInt8(ascii: "."))
    try out.append(repeating: UInt8(ascii: "0"), count: 0 &- first &- 1)
    var next = max(first &+ 1, 0)
    if next >= length { try out.append(UInt8(ascii: "0")) }
    while let digit = digits.element(at: next) {
      try out.append(digit)
      next &+= 1
    }
  }

  /// The first digit stands at 10^exponent.
  private static func appendScientific(
    _ digits: borrowing GrowableBuffer<UInt8>, exponent: Int, to out: inout GrowableBuffer<UInt8>
  ) throws(TamisError) {
    var next = 0
    while let digit = digits.element(at: next) {
      if next == 1 { try out.append(UInt8(ascii: ".")) }
      try out.append(digit)
      next &+= 1
    }
    let size = exponent < 0 ? 0 &- exponent : exponent
    try out.append(exponent < 0 ? "e-" : "e+")
    if size < 10 { try out.append(UInt8(ascii: "0")) }
    if size >= 100 { try out.append(UInt8(ascii: "0") &+ UInt8(truncatingIfNeeded: size / 100)) }
    if size >= 10 { try out.append(UInt8(ascii: "0") &+ UInt8(truncatingIfNeeded: size / 10 % 10)) }
    try out.append(UInt8(ascii: "0") &+ UInt8(truncatingIfNeeded: size % 10))
  }
}
