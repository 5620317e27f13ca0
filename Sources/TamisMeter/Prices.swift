// Three ways to turn a record into money: a provider's price list by tokens, a machine by hours, electricity by
// energy. Each answer carries its source, and list-price money never passes through a binary number.

package import TamisRuntime

package enum PriceSource: String, Sendable { case list, machine, energy }

/// An amount and where it comes from.
package struct Bill: Sendable, Equatable {
  package let money: Money
  package let source: PriceSource
  /// The list's or machine's name.
  package let name: String
  /// The day the prices are from, as the list states it; empty where it does not.
  package let date: String
}

/// Tokens as providers bill them: `input` includes `cached` and `cacheWrite`.
package struct Usage: Sendable, Equatable {
  package let input: UInt64
  package let cached: UInt64
  package let cacheWrite: UInt64
  package let output: UInt64
  /// Tokens kept in a provider's cache times the hours they were kept.
  package let cacheTokenHours: Decimal

  package init(
    input: UInt64, cached: UInt64 = 0, cacheWrite: UInt64 = 0, output: UInt64, cacheTokenHours: Decimal = .zero
  ) throws(TamisError) {
    let (inside, overflowed) = cached.addingReportingOverflow(cacheWrite)
    guard !overflowed, inside <= input else {
      throw TamisError(
        .argument,
        "usage: \(cached) cached and \(cacheWrite) written of \(input) input tokens, which include them"
      )
    }
    guard !cacheTokenHours.isNegative else { throw TamisError(.argument, "usage: negative cache storage") }
    self.input = input
    self.cached = cached
    self.cacheWrite = cacheWrite
    self.output = output
    self.cacheTokenHours = cacheTokenHours
  }

  package var uncached: UInt64 { input &- cached &- cacheWrite }
}

// MARK: Price lists

/// Prices for one token.
package struct TokenRates: Sendable, Equatable {
  package let input: Decimal
  package let cached: Decimal
  package let cacheWrite: Decimal
  package let output: Decimal

  private static let dearest = Decimal(Int64(1000))

  /// Without a price of their own, cached and written tokens cost what input costs.
  package init(input: Decimal, cached: Decimal? = nil, cacheWrite: Decimal? = nil, output: Decimal) throws(TamisError) {
    self.input = input
    self.cached = cached ?? input
    self.cacheWrite = cacheWrite ?? input
    self.output = output
    for price in [self.input, self.cached, self.cacheWrite, self.output] {
      try TokenRates.check(price)
    }
  }

  /// The usual notation: prices for a million tokens.
  package init(perMillionInput: Decimal, cached: Decimal?, output: Decimal) throws(TamisError) {
    let token = try Decimal(1, places: 6)
    try self.init(
      input: try perMillionInput.multiplied(by: token), cached: try cached?.multiplied(by: token),
      output: try output.multiplied(by: token))
  }

  fileprivate static func check(_ price: Decimal) throws(TamisError) {
    guard !price.isNegative, price <= dearest else {
      throw TamisError(.argument, "prices: \(price) for one token, expected 0 to \(dearest)")
    }
  }
}

package struct PriceList: Sendable, Equatable {
  package let name: String
  package let currency: Currency
  package let source: String
  package let date: String
  /// Ascending; the first starts at 0 tokens. The whole request is billed at the tier its input reaches.
  package let tiers: [Tier]
  package let cacheStoragePerTokenHour: Decimal

  package struct Tier: Sendable, Equatable {
    /// For requests of more input tokens than this; the first tier serves every request.
    package let above: UInt64
    package let rates: TokenRates
    package init(above: UInt64, rates: TokenRates) {
      self.above = above
      self.rates = rates
    }
  }

  package init(
    name: String, currency: Currency, source: String, date: String, tiers: [Tier],
    cacheStoragePerTokenHour: Decimal = .zero
  ) throws(TamisError) {
    guard tiers.first?.above == 0, tiers.count <= 64 else {
      throw TamisError(.argument, "prices: \(tiers.count) tiers, expected 1 to 64 and the first from 0 tokens")
    }
    for (lower, upper) in zip(tiers, tiers.dropFirst()) where lower.above >= upper.above {
      throw TamisError(.argument, "prices: tiers are not in ascending order")
    }
    try TokenRates.check(cacheStoragePerTokenHour)
    self.name = name
    self.currency = currency
    self.source = source
    self.date = date
    self.tiers = tiers
    self.cacheStoragePerTokenHour = cacheStoragePerTokenHour
  }

  package func bill(_ usage: Usage) throws(TamisError) -> Bill {
    guard let rates = tiers.last(where: { $0.above == 0 || usage.input > $0.above })?.rates else {
      throw TamisError(.internal, "prices: a list without tiers")
    }
    var total = try rates.input.multiplied(by: Decimal(usage.uncached))
    total = try total.adding(rates.cached.multiplied(by: Decimal(usage.cached)))
    total = try total.adding(rates.cacheWrite.multiplied(by: Decimal(usage.cacheWrite)))
    total = try total.adding(rates.output.multiplied(by: Decimal(usage.output)))
    total = try total.adding(cacheStoragePerTokenHour.multiplied(by: usage.cacheTokenHours))
    return Bill(money: Money(total, currency), source: .list, name: name, date: date)
  }

  /// DeepSeek's list prices at the V3.2-Exp release.
  package static func deepSeekV32() throws(TamisError) -> PriceList {
    let rates = try TokenRates(
      perMillionInput: Decimal(28, places: 2), cached: Decimal(28, places: 3), output: Decimal(42, places: 2))
    return try PriceList(
      name: "DeepSeek-V3.2-Exp", currency: .usd, source: "https://api-docs.deepseek.com/quick_start/pricing",
      date: "2025-09-29", tiers: [Tier(above: 0, rates: rates)])
  }
}

// MARK: Machines and electricity

/// A machine by the hour, of which a request pays the share it keeps busy.
package struct MachinePrice: Sendable, Equatable {
  package let name: String
  package let perHour: Money
  /// 0 < share ≤ 1: 1 when the request has the machine to itself.
  package let busyShare: Decimal
  package let date: String

  private static let dearestHour = Decimal(Int64(1_000_000_000))

  package init(name: String, perHour: Money, busyShare: Decimal = Decimal(Int64(1)), date: String = "")
    throws(TamisError)
  {
    guard !perHour.amount.isNegative, perHour.amount <= MachinePrice.dearestHour else {
      throw TamisError(.argument, "prices: \(perHour) an hour, expected 0 to \(MachinePrice.dearestHour)")
    }
    guard Decimal.zero < busyShare, busyShare <= Decimal(Int64(1)) else {
      throw TamisError(.argument, "prices: a busy share of \(busyShare), expected more than 0 and at most 1")
    }
    self.name = name
    self.perHour = perHour
    self.busyShare = busyShare
    self.date = date
  }

  /// Rounded to 10^-15 of the currency unit: an hour's price seldom divides evenly.
  package func bill(nanoseconds: UInt64) throws(TamisError) -> Bill {
    try bill(of: Decimal(Int128(nanoseconds), places: 9))
  }

  /// For predicted seconds.
  package func bill(seconds: Double) throws(TamisError) -> Bill {
    try bill(of: Decimal(rounding: seconds, places: 15))
  }

  private func bill(of seconds: Decimal) throws(TamisError) -> Bill {
    let share = try perHour.amount.multiplied(by: busyShare)
    let amount = try seconds.multiplied(by: share).divided(by: Decimal(Int64(3600)), places: 15)
    return Bill(money: Money(amount, perHour.currency), source: .machine, name: name, date: date)
  }
}

package struct EnergyPrice: Sendable, Equatable {
  package let name: String
  package let perKilowattHour: Money
  package let date: String

  private static let dearest = Decimal(Int64(1_000_000_000))

  package init(name: String, perKilowattHour: Money, date: String = "") throws(TamisError) {
    guard !perKilowattHour.amount.isNegative, perKilowattHour.amount <= EnergyPrice.dearest else {
      throw TamisError(.argument, "prices: \(perKilowattHour) a kWh, expected 0 to \(EnergyPrice.dearest)")
    }
    self.name = name
    self.perKilowattHour = perKilowattHour
    self.date = date
  }

  /// One kWh is 3.6 × 10^12 µJ. Rounded to 10^-15 of the currency unit.
  package func bill(microjoules: UInt64) throws(TamisError) -> Bill {
    let joules = try Decimal(Int128(microjoules), places: 6)
    let amount = try joules.multiplied(by: perKilowattHour.amount).divided(by: Decimal(Int64(3_600_000)), places: 15)
    return Bill(money: Money(amount, perKilowattHour.currency), source: .energy, name: name, date: date)
  }
}

// MARK: A predicted amount

package struct MoneyInterval: Sendable, Equatable {
  package let low: Money
  package let mid: Money
  package let high: Money
}

extension Estimate {
  package func money(_ price: MachinePrice) throws(TamisError) -> MoneyInterval {
    MoneyInterval(
      low: try price.bill(seconds: seconds.low).money, mid: try price.bill(seconds: seconds.mid).money,
      high: try price.bill(seconds: seconds.high).money)
  }
}
