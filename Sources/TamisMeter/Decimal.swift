// Exact decimal numbers: the only arithmetic that prices and list-price money ever see. A value is an integer
// coefficient times a power of ten, so 2.8e-07 is 28 with 8 places and nothing is lost by reading, adding,
// multiplying or printing it. Division is the one operation that can round, and it says where.
// Refused: text that is not a number, and any result that needs more than 38 digits or 60 decimal places.

package import TamisRuntime

package struct Decimal: Sendable, Hashable {
  /// The value is `coefficient × 10^-places`; normalised, so that equal values have equal fields.
  package let coefficient: Int128
  package let places: Int

  package static let zero = Decimal(reduced: 0, places: 0)
  private static let mostPlaces = 60

  package init(_ integer: Int64) { self.init(reduced: Int128(integer), places: 0) }
  package init(_ count: UInt64) { self.init(reduced: Int128(count), places: 0) }

  /// `coefficient × 10^-places`; negative places are zeros at the end.
  package init(_ coefficient: Int128, places: Int) throws(TamisError) {
    guard coefficient != 0 else {
      self = .zero
      return
    }
    guard places <= 1000, places >= -38 else { throw Decimal.overflow() }
    var value = coefficient
    var left = places
    while left > 0, value % 10 == 0 {
      value /= 10
      left &-= 1
    }
    while left < 0 {
      let (product, overflowed) = value.multipliedReportingOverflow(by: 10)
      guard !overflowed else { throw Decimal.overflow() }
      value = product
      left &+= 1
    }
    guard left <= Decimal.mostPlaces else { throw Decimal.overflow() }
    self.init(reduced: value, places: left)
  }

  private init(reduced coefficient: Int128, places: Int) {
    self.coefficient = coefficient
    self.places = places
  }

  private static func overflow() -> TamisError {
    TamisError(.argument, "decimal: the result needs more than 38 digits or 60 places")
  }
}

// MARK: Arithmetic

extension Decimal {
  package func adding(_ other: Decimal) throws(TamisError) -> Decimal {
    let common = max(places, other.places)
    let (sum, overflowed) = try coefficient(at: common).addingReportingOverflow(other.coefficient(at: common))
    guard !overflowed else { throw Decimal.overflow() }
    return try Decimal(sum, places: common)
  }

  package func subtracting(_ other: Decimal) throws(TamisError) -> Decimal {
    try adding(try other.negated())
  }

  package func multiplied(by other: Decimal) throws(TamisError) -> Decimal {
    let (product, overflowed) = coefficient.multipliedReportingOverflow(by: other.coefficient)
    guard !overflowed else { throw Decimal.overflow() }
    return try Decimal(product, places: places &+ other.places)
  }

  /// The quotient to `places` decimal places, halves to the even digit.
  package func divided(by other: Decimal, places wanted: Int) throws(TamisError) -> Decimal {
    guard other.coefficient != 0 else { throw TamisError(.argument, "decimal: division by zero") }
    guard wanted >= 0, wanted <= Decimal.mostPlaces else {
      throw TamisError(.argument, "decimal: \(wanted) places, expected 0 to \(Decimal.mostPlaces)")
    }
    let shift = wanted &- places &+ other.places
    let top = try Decimal.scale(coefficient, by: max(shift, 0))
    let bottom = try Decimal.scale(other.coefficient, by: max(0 &- shift, 0))
    return try Decimal(try Decimal.divideHalfEven(top, bottom), places: wanted)
  }

  package func rounded(places wanted: Int) throws(TamisError) -> Decimal {
    guard places > wanted else { return self }
    return try divided(by: Decimal(Int64(1)), places: wanted)
  }

  package func negated() throws(TamisError) -> Decimal {
    guard coefficient != Int128.min else { throw Decimal.overflow() }
    return Decimal(reduced: 0 &- coefficient, places: places)
  }

  package var isNegative: Bool { coefficient < 0 }

  private func coefficient(at wanted: Int) throws(TamisError) -> Int128 {
    try Decimal.scale(coefficient, by: wanted &- places)
  }

  private static func scale(_ value: Int128, by zeros: Int) throws(TamisError) -> Int128 {
    guard value != 0 else { return 0 }
    guard zeros <= 38 else { throw overflow() }
    var scaled = value
    var left = zeros
    while left > 0 {
      let (product, overflowed) = scaled.multipliedReportingOverflow(by: 10)
      guard !overflowed else { throw overflow() }
      scaled = product
      left &-= 1
    }
    return scaled
  }

  private static func divideHalfEven(_ top: Int128, _ bottom: Int128) throws(TamisError) -> Int128 {
    let (quotient, overflowed) = top.dividedReportingOverflow(by: bottom)
    let (remainder, alsoOverflowed) = top.remainderReportingOverflow(dividingBy: bottom)
    guard !overflowed, !alsoOverflowed else { throw overflow() }
    let rest = remainder.magnitude
    let toNext = bottom.magnitude &- rest
    guard rest > toNext || (rest == toNext && quotient & 1 != 0) else { return quotient }
    let (rounded, wrapped) = quotient.addingReportingOverflow((top < 0) == (bottom < 0) ? 1 : -1)
    guard !wrapped else { throw overflow() }
    return rounded
  }
}

extension Decimal: Comparable {
  /// Compares digit by digit, so that it cannot overflow whatever the two scales are.
  package static func < (left: Decimal, right: Decimal) -> Bool {
    if left.isNegative != right.isNegative { return left.isNegative }
    let order = compareMagnitudes(left, right)
    return left.isNegative ? order > 0 : order < 0
  }

  private static func compareMagnitudes(_ left: Decimal, _ right: Decimal) -> Int {
    let places = max(left.places, right.places)
    let a = digits(left, to: places)
    let b = digits(right, to: places)
    if a.count != b.count { return a.count < b.count ? -1 : 1 }
    for (x, y) in zip(a, b) where x != y { return x < y ? -1 : 1 }
    return 0
  }

  private static func digits(_ value: Decimal, to places: Int) -> [UInt8] {
    guard value.coefficient != 0 else { return [] }
    return Array(String(value.coefficient.magnitude).utf8) + Array(repeating: 48, count: max(places &- value.places, 0))
  }
}

// MARK: Text

extension Decimal: CustomStringConvertible {
  /// Plain decimal notation without an exponent: "0.000742".
  package var description: String {
    let digits = Array(String(coefficient.magnitude).utf8)
    let padded = Array(repeating: UInt8(48), count: max(places &+ 1 &- digits.count, 0)) + digits
    let whole = String(decoding: padded.dropLast(places), as: UTF8.self)
    let sign = isNegative ? "-" : ""
    guard places > 0 else { return sign + whole }
    return sign + whole + "." + String(decoding: padded.suffix(places), as: UTF8.self)
  }
}

extension Decimal {
  /// Reads a number as JSON writes it (RFC 8259: `-?int frac? exp?`), exactly.
  package init(parsing text: some Sequence<UInt8>) throws(TamisError) {
    var reader = NumberReader(bytes: text)
    self = try reader.decimal()
  }

  package init(parsing text: String) throws(TamisError) {
    try self.init(parsing: Array(text.utf8))
  }

  /// A figure that was measured or predicted, and is therefore binary: rounded once, to `places`.
  package init(rounding value: Double, places: Int) throws(TamisError) {
    var scaled = value
    var left = min(max(places, 0), 30)
    while left > 0 {
      scaled *= 10
      left &-= 1
    }
    guard scaled.isFinite, let coefficient = Int128(exactly: scaled.rounded(.toNearestOrEven)) else {
      throw TamisError(.argument, "decimal: \(value) is no amount")
    }
    try self.init(coefficient, places: min(max(places, 0), 30))
  }
}

/// One pass over a number's text. Zeros at the end are held back, so that "1.000000" needs one digit.
private struct NumberReader {
  private let bytes: [UInt8]
  private var at = 0
  private var coefficient: Int128 = 0
  private var heldZeros = 0
  private var places = 0

  init(bytes: some Sequence<UInt8>) {
    self.bytes = Array(bytes.prefix(400))
  }

  mutating func decimal() throws(TamisError) -> Decimal {
    let negative = take(45)
    let leadingZero = peek() == 48
    let whole = try digits(fraction: false)
    guard whole > 0, !(leadingZero && whole > 1) else { throw malformed() }
    if take(46) {
      guard try digits(fraction: true) > 0 else { throw malformed() }
    }
    let exponent = try exponent()
    guard at == bytes.count, bytes.count < 400 else { throw malformed() }
    guard coefficient != 0 else { return .zero }
    return try Decimal(negative ? 0 &- coefficient : coefficient, places: places &- heldZeros &- exponent)
  }

  private mutating func digits(fraction: Bool) throws(TamisError) -> Int {
    var count = 0
    while let byte = peek(), byte >= 48, byte <= 57 {
      at &+= 1
      count &+= 1
      if fraction { places &+= 1 }
      try append(Int128(byte &- 48))
    }
    return count
  }

  private mutating func append(_ digit: Int128) throws(TamisError) {
    guard digit != 0 else {
      if coefficient != 0 { heldZeros &+= 1 }
      return
    }
    for _ in 0...heldZeros {
      let (product, overflowed) = coefficient.multipliedReportingOverflow(by: 10)
      guard !overflowed else { throw tooLong() }
      coefficient = product
    }
    heldZeros = 0
    let (sum, overflowed) = coefficient.addingReportingOverflow(digit)
    guard !overflowed else { throw tooLong() }
    coefficient = sum
  }

  private mutating func exponent() throws(TamisError) -> Int {
    guard take(101) || take(69) else { return 0 }
    let negative = take(45)
    if !negative { _ = take(43) }
    var value = 0
    var count = 0
    while let byte = peek(), byte >= 48, byte <= 57 {
      at &+= 1
      count &+= 1
      value = min(value &* 10 &+ Int(byte &- 48), 100_000)
    }
    guard count > 0 else { throw malformed() }
    return negative ? 0 &- value : value
  }

  private func peek() -> UInt8? { at < bytes.count ? bytes[at] : nil }

  private mutating func take(_ byte: UInt8) -> Bool {
    guard peek() == byte else { return false }
    at &+= 1
    return true
  }

  private func malformed() -> TamisError { TamisError(.format, "decimal: not a number, expected digits as in 2.8e-07") }
  private func tooLong() -> TamisError { TamisError(.argument, "decimal: a number of more than 38 digits") }
}
