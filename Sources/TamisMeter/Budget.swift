// Amounts that budgets limit, reservations hold and settlements spend: money, tokens, FLOP and time, each optional.
// Money is compared exactly and only within one currency.

package import TamisRuntime

package struct Amount: Sendable, Equatable {
  package var money: Money?
  package var tokens: UInt64?
  package var flops: UInt128?
  package var nanoseconds: UInt64?

  package init(money: Money? = nil, tokens: UInt64? = nil, flops: UInt128? = nil, nanoseconds: UInt64? = nil) {
    self.money = money
    self.tokens = tokens
    self.flops = flops
    self.nanoseconds = nanoseconds
  }

  package var isEmpty: Bool { money == nil && tokens == nil && flops == nil && nanoseconds == nil }

  func validate() throws(TamisError) {
    if let money, money.amount.isNegative {
      throw TamisError(.argument, "budget: \(money), expected an amount that is not negative")
    }
  }

  /// Nothing, in the units of this amount.
  var nothing: Amount {
    Amount(
      money: money.map { Money(.zero, $0.currency) }, tokens: tokens.map { _ in 0 }, flops: flops.map { _ in 0 },
      nanoseconds: nanoseconds.map { _ in 0 })
  }

  func hasSameUnits(as other: Amount) -> Bool {
    money?.currency == other.money?.currency && (tokens == nil) == (other.tokens == nil)
      && (flops == nil) == (other.flops == nil) && (nanoseconds == nil) == (other.nanoseconds == nil)
  }
}

// MARK: Arithmetic in the units of the left side

extension Amount {
  /// The part of `other` that this amount's units count. Every one of them must be there: an amount without tokens
  /// would pass a limit in tokens unseen.
  func part(of other: Amount) throws(TamisError) -> Amount {
    Amount(
      money: try Amount.part(money, other.money, "money"), tokens: try Amount.part(tokens, other.tokens, "tokens"),
      flops: try Amount.part(flops, other.flops, "FLOP"),
      nanoseconds: try Amount.part(nanoseconds, other.nanoseconds, "time"))
  }

  private static func part<Value>(_ mine: Value?, _ other: Value?, _ unit: StaticString) throws(TamisError) -> Value? {
    guard mine != nil else { return nil }
    guard let other else { throw TamisError(.argument, "budget: the limit is in \(unit), and the amount names none") }
    return other
  }

  func adding(_ other: Amount) throws(TamisError) -> Amount {
    var sum = self
    if let mine = money, let other = other.money { sum.money = try mine.adding(other) }
    sum.tokens = try Amount.add(tokens, other.tokens)
    sum.flops = try Amount.add(flops, other.flops)
    sum.nanoseconds = try Amount.add(nanoseconds, other.nanoseconds)
    return sum
  }

  private static func add<Count: FixedWidthInteger>(_ left: Count?, _ right: Count?) throws(TamisError) -> Count? {
    guard let left, let right else { return left }
    let (sum, overflowed) = left.addingReportingOverflow(right)
    guard !overflowed else { throw TamisError(.budget, "budget: the sum of the amounts does not fit") }
    return sum
  }

  func subtracting(_ other: Amount) throws(TamisError) -> Amount {
    var rest = self
    if let mine = money, let other = other.money { rest.money = try mine.subtracting(other) }
    rest.tokens = try Amount.subtract(tokens, other.tokens)
    rest.flops = try Amount.subtract(flops, other.flops)
    rest.nanoseconds = try Amount.subtract(nanoseconds, other.nanoseconds)
    return rest
  }

  private static func subtract<Count: FixedWidthInteger>(_ left: Count?, _ right: Count?) throws(TamisError) -> Count? {
    guard let left, let right else { return left }
    let (rest, overflowed) = left.subtractingReportingOverflow(right)
    guard !overflowed else { throw TamisError(.internal, "budget: more was settled than reserved") }
    return rest
  }

  /// The unit in which `total` is more than this amount, or nil.
  func unit(exceededBy total: Amount) throws(TamisError) -> StaticString? {
    if let money, let other = total.money, try money.amount < other.amount(in: money.currency) { return "money" }
    if let tokens, let other = total.tokens, tokens < other { return "tokens" }
    if let flops, let other = total.flops, flops < other { return "FLOP" }
    if let nanoseconds, let other = total.nanoseconds, nanoseconds < other { return "time" }
    return nil
  }
}

// MARK: Upper bounds to reserve

extension PriceList {
  /// The most that a request of `input` and at most `output` tokens can cost by this list, whatever is cached.
  package func most(input: UInt64, output: UInt64) throws(TamisError) -> Money {
    var dearest = try bill(Usage(input: input, output: output)).money
    for usage in [
      try Usage(input: input, cached: input, output: output),
      try Usage(input: input, cacheWrite: input, output: output),
    ] {
      let money = try bill(usage).money
      if dearest.amount < money.amount { dearest = money }
    }
    return dearest
  }
}

extension Estimate {
  /// What to reserve for the request: its tokens, the predicted FLOP, the high time, and `money` by some price.
  package func most(_ request: Request, money: Money?) throws(TamisError) -> Amount {
    guard let flops = UInt128(exactly: total.flops.rounded(.up)),
      let nanoseconds = UInt64(exactly: (seconds.high * 1e9).rounded(.up)),
      let tokens = UInt64(exactly: request.input &+ request.output)
    else { throw TamisError(.argument, "budget: the request is too large to reserve") }
    return Amount(money: money, tokens: tokens, flops: flops, nanoseconds: nanoseconds)
  }
}
