// Money: an exact amount in one currency. Amounts of different currencies never meet: adding them is refused,
// because an exchange rate is a guess this library does not make.

package import TamisRuntime

/// An ISO 4217 code, three capital letters packed into one integer.
package struct Currency: Sendable, Hashable, CustomStringConvertible {
  private let packed: UInt32

  package static let usd = Currency(packed: Currency.pack(85, 83, 68))

  package init(_ code: String) throws(TamisError) {
    let letters = Array(code.utf8.prefix(4))
    guard letters.count == 3, Currency.known.contains(letters) else {
      throw TamisError(.argument, "currency: unknown code, expected an ISO 4217 code such as USD")
    }
    packed = Currency.pack(letters[0], letters[1], letters[2])
  }

  private init(packed: UInt32) { self.packed = packed }

  package var description: String {
    let letters = [
      UInt8(truncatingIfNeeded: packed >> 16), UInt8(truncatingIfNeeded: packed >> 8),
      UInt8(truncatingIfNeeded: packed),
    ]
    return String(decoding: letters, as: UTF8.self)
  }

  private static func pack(_ a: UInt8, _ b: UInt8, _ c: UInt8) -> UInt32 {
    UInt32(a) << 16 | UInt32(b) << 8 | UInt32(c)
  }

  /// The active codes of ISO 4217, without funds, metals and testing codes.
  private static let known: Set<[UInt8]> = {
    let codes =
      "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CLP CNY "
      + "COP CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL HTG HUF IDR ILS "
      + "INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL MGA MKD MMK MNT MOP "
      + "MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD RUB RWF SAR SBD SCR "
      + "SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD TZS UAH UGX USD UYU UZS VED VES VND "
      + "VUV WST XAF XCD XCG XOF XPF YER ZAR ZMW ZWG"
    return Set(codes.utf8.split(separator: 32).map { Array($0) })
  }()
}

package struct Money: Sendable, Hashable, CustomStringConvertible {
  package let amount: Decimal
  package let currency: Currency

  package init(_ amount: Decimal, _ currency: Currency) {
    self.amount = amount
    self.currency = currency
  }

  package func adding(_ other: Money) throws(TamisError) -> Money {
    Money(try amount.adding(try other.amount(in: currency)), currency)
  }

  package func subtracting(_ other: Money) throws(TamisError) -> Money {
    Money(try amount.subtracting(try other.amount(in: currency)), currency)
  }

  /// This amount, provided that it is in `wanted`.
  package func amount(in wanted: Currency) throws(TamisError) -> Decimal {
    guard currency == wanted else {
      throw TamisError(.argument, "money: an amount in \(currency), expected \(wanted)")
    }
    return amount
  }

  package var description: String { "\(amount) \(currency)" }
}
