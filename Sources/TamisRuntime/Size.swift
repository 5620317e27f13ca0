// Arithmetic on sizes that come from outside: products and sums of non-negative Ints that fail instead of
// overflowing. Refuses negative operands.

package enum Size {
  package static func product(_ a: Int, _ b: Int) throws(TamisError) -> Int {
    let (value, overflow) = a.multipliedReportingOverflow(by: b)
    guard !overflow, a >= 0, b >= 0 else {
      throw TamisError(.argument, "size \(a) x \(b) is negative or too large")
    }
    return value
  }

  package static func product(_ a: Int, _ b: Int, _ c: Int) throws(TamisError) -> Int {
    try product(try product(a, b), c)
  }

  package static func product(_ a: Int, _ b: Int, _ c: Int, _ d: Int) throws(TamisError) -> Int {
    try product(try product(a, b, c), d)
  }

  package static func sum(_ a: Int, _ b: Int) throws(TamisError) -> Int {
    let (value, overflow) = a.addingReportingOverflow(b)
    guard !overflow, a >= 0, b >= 0 else {
      throw TamisError(.argument, "size \(a) + \(b) is negative or too large")
    }
    return value
  }

  package static func sum(_ a: Int, _ b: Int, _ c: Int) throws(TamisError) -> Int {
    try sum(try sum(a, b), c)
  }

  package static func sum(_ a: Int, _ b: Int, _ c: Int, _ d: Int) throws(TamisError) -> Int {
    try sum(try sum(a, b, c), d)
  }

  /// The smallest multiple of `unit` (at least 1) that is not below `size`.
  package static func roundUp(_ size: Int, to unit: Int) throws(TamisError) -> Int {
    guard unit > 0 else { throw TamisError(.argument, "size unit \(unit) is not positive") }
    let padded = try sum(size, unit &- 1)
    return padded &- padded % unit
  }
}
