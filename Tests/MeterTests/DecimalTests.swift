import TamisMeter
import TamisRuntime
import Testing

@Suite struct DecimalTests {
  @Test(arguments: [
    ("2.8e-07", "0.00000028"), ("0", "0"), ("-0", "0"), ("-0.0", "0"), ("1.000", "1"), ("10", "10"), ("1E3", "1000"),
    ("1e+2", "100"), ("-12.50", "-12.5"), ("0.1", "0.1"), ("1.0000000000000001e-07", "0.00000010000000000000001"),
    ("0e99999", "0"), ("100000000000000000000000000000000000000", "100000000000000000000000000000000000000"),
    (
      "0.00000000000000000000000000000000000000000000000000000000001",
      "0.00000000000000000000000000000000000000000000000000000000001"
    ),
  ])
  func readsAndPrintsExactly(_ text: String, _ printed: String) throws {
    #expect(try Decimal(parsing: text).description == printed)
  }

  @Test(arguments: [
    "", "-", "+1", "01", ".5", "1.", "1e", "1e+", "1 ", " 1", "0x1", "NaN", "Infinity", "1_000", "1,5", "--1", "1e5.0",
    "1e-100", "1e999999999999999999999", "123456789012345678901234567890123456789012345",
    String(repeating: "0", count: 500),
  ])
  func refuses(_ text: String) {
    #expect(throws: TamisError.self) { try Decimal(parsing: text) }
  }

  @Test func tenTimesATenthIsOne() throws {
    let tenth = try Decimal(parsing: "0.1")
    var sum = Decimal.zero
    for _ in 0..<10 { sum = try sum.adding(tenth) }
    #expect(sum == Decimal(Int64(1)))
    #expect(try sum.subtracting(tenth).description == "0.9")
  }

  @Test func multipliesAndDivides() throws {
    let price = try Decimal(parsing: "2.8e-07")
    #expect(try price.multiplied(by: Decimal(UInt64(1_000_000))).description == "0.28")
    #expect(try Decimal(Int64(2)).divided(by: Decimal(Int64(3)), places: 4).description == "0.6667")
    #expect(try Decimal(Int64(-2)).divided(by: Decimal(Int64(3)), places: 4).description == "-0.6667")
  }

  @Test(arguments: [
    ("0.5", "0"), ("1.5", "2"), ("2.5", "2"), ("-0.5", "0"), ("-1.5", "-2"), ("2.51", "3"), ("2.49", "2"),
  ])
  func halvesGoToTheEvenDigit(_ text: String, _ rounded: String) throws {
    #expect(try Decimal(parsing: text).rounded(places: 0).description == rounded)
  }

  @Test func overflowIsAnError() throws {
    let large = try Decimal(parsing: "1e38")
    #expect(throws: TamisError.self) { try large.multiplied(by: large) }
    #expect(throws: TamisError.self) { try large.adding(large) }
    #expect(throws: TamisError.self) { try Decimal(Int128.min, places: 0).negated() }
    #expect(throws: TamisError.self) { try large.divided(by: Decimal(parsing: "1e-30"), places: 10) }
    #expect(throws: TamisError.self) { try large.divided(by: .zero, places: 2) }
    #expect(throws: TamisError.self) { try large.divided(by: large, places: 61) }
    #expect(throws: TamisError.self) { try Decimal(rounding: .nan, places: 2) }
    #expect(throws: TamisError.self) { try Decimal(rounding: .infinity, places: 2) }
    #expect(throws: TamisError.self) { try Decimal(rounding: 1e300, places: 2) }
  }

  @Test func comparesAcrossScales() throws {
    let ascending = ["-1e38", "-1.5", "-0.1", "0", "1e-40", "0.09", "0.1", "1", "9", "10", "1e38"]
    let values = try ascending.map { try Decimal(parsing: $0) }
    for (i, left) in values.enumerated() {
      for (j, right) in values.enumerated() {
        #expect((left < right) == (i < j), "\(left) < \(right)")
        #expect((left == right) == (i == j))
      }
    }
  }

  @Test func currenciesDoNotMix() throws {
    let euro = Money(Decimal(Int64(1)), try Currency("EUR"))
    let dollar = Money(Decimal(Int64(1)), .usd)
    #expect(try euro.adding(euro).description == "2 EUR")
    #expect(throws: TamisError.self) { try euro.adding(dollar) }
    for code in ["", "usd", "US", "USDX", "XYZ", "🥐"] {
      #expect(throws: TamisError.self) { try Currency(code) }
    }
    #expect(try Currency("USD") == .usd)
  }
}
