// The meter tree under many threads: nothing is lost, no budget is passed, nothing is settled twice.
import Synchronization
import TamisMeter
import TamisRuntime
import TamisTestSupport
import Testing

private func cost(calls: UInt64 = 1, flops: UInt128 = 0, input: UInt64 = 0) -> Cost {
  var cost = Cost()
  cost.calls = calls
  cost.flops = flops
  cost.inputTokens = input
  return cost
}

private func status(_ body: () throws -> Void) -> Status? {
  do {
    try body()
    return nil
  } catch {
    return (error as? TamisError)?.status
  }
}

@Suite struct MeterTests {
  @Test func parentsAreChargedToo() throws {
    let root = try Meter(label: "root")
    let tenant = try Meter(label: "tenant", parent: root)
    let other = try Meter(label: "other", parent: root)
    try tenant.charge(cost(flops: 10))
    try other.charge(cost(flops: 5))
    try root.charge(cost(flops: 1))
    #expect(tenant.read().flops == 10)
    #expect(other.read().flops == 5)
    #expect(root.read().flops == 16)
    #expect(root.read().calls == 3)
  }

  @Test func threadsLoseNothing() throws {
    let root = try Meter(label: "root")
    let tenants = try (0..<4).map { try Meter(label: "tenant \($0)", parent: root) }
    let flops = UInt128(UInt64.max) / 3
    onThreads(16) { index in
      for _ in 0..<500 {
        try? tenants[index % 4].charge(cost(flops: flops, input: 3))
        let read = root.read()
        if read.inputTokens != read.calls * 3 { try? root.charge(cost(calls: 1 << 60)) }
      }
    }
    #expect(root.read().calls == 8000)
    #expect(root.read().flops == flops * 8000)
    #expect(root.read().inputTokens == 24_000)
    for tenant in tenants { #expect(tenant.read().calls == 2000) }
  }

  @Test func aFullCounterRefusesTheWholeCharge() throws {
    let root = try Meter(label: "root")
    let tenant = try Meter(label: "tenant", parent: root)
    try root.charge(cost(calls: .max))
    let before = tenant.read()
    #expect(status { try tenant.charge(cost(calls: 1, flops: 7, input: 2)) } == .full)
    #expect(tenant.read() == before)
    #expect(root.read().flops == 0)
  }

  @Test func readsSubtract() throws {
    let meter = try Meter(label: "m")
    try meter.charge(cost(flops: 3, input: 4))
    let before = meter.read()
    var second = cost(calls: 2, flops: 5)
    second.setDenseTime(nanoseconds: 70, basis: .calibrated)
    second.setEnergy(microjoules: 9)
    try meter.charge(second)
    let difference = try meter.read().subtracting(before)
    #expect(difference == second)
    #expect(difference.basis == .calibrated && difference.microjoules == 9)
    #expect(status { _ = try before.subtracting(meter.read()) } == .argument)
  }

  /// A sum is as good as its weakest part, and says nothing where a part is missing.
  @Test func basisAndEnergyAreNeverGuessed() throws {
    var measured = cost()
    measured.setDenseTime(nanoseconds: 10, basis: .measured)
    measured.setEnergy(microjoules: 4)
    var analytic = cost()
    analytic.setDenseTime(nanoseconds: 5, basis: .analytic)
    #expect(measured.basis == .measured && measured.denseNanoseconds == 10)
    let sum = try measured.adding(analytic)
    #expect(sum.basis == .analytic && sum.denseNanoseconds == 15 && sum.microjoules == 4)
    var unread = Cost()
    unread.setEnergy(microjoules: nil)
    #expect(try sum.adding(unread).microjoules == nil)
    var sample = Sample()
    sample.calls = 3
    sample.denseFlops = 100
    #expect(try sum.adding(Cost(sample)).denseNanoseconds == nil)
    #expect(Cost().basis == nil && Cost().denseNanoseconds == nil && Cost().microjoules == nil)
  }

  @Test func samplesBecomeCosts() throws {
    var sample = Sample()
    sample.calls = 2
    sample.keysDense = 1000
    sample.keysAttended = 64
    sample.flops = 7
    sample.denseFlops = 2_000_000_000_000
    var cost = Cost(sample)
    #expect(cost.calls == 2 && cost.flops == 7 && cost.keysAvoided == 936)
    cost.estimateDenseTime(.decode, on: try MachineProfile.h800())
    #expect(cost.basis == .analytic)
    #expect(cost.denseNanoseconds == 3_368_705)  // 2e12 / (0.6 × 989.5e12) s
  }

  /// What compared every pair, in either form, is its own dense counterfactual; what gathered is estimated.
  @Test func denseTimeOfBothForms() throws {
    let machine = try MachineProfile.h800()
    var sample = Sample()
    (sample.calls, sample.queries, sample.keysDense, sample.keysAttended) = (1, 64, 1000, 64)
    (sample.wallNanoseconds, sample.denseFlops) = (77, 2_000_000_000_000)
    let gathered = Cost(.attend, sample, on: machine)
    #expect(gathered.basis == .analytic && gathered.denseNanoseconds != 77)
    #expect(Cost(.attend, sample, on: nil).basis == nil)
    sample.keysExpanded = 1000
    let masked = Cost(.attend, sample, on: machine)
    #expect(masked.basis == .measured && masked.denseNanoseconds == 77 && masked.keysAvoided == 936)
    let scored = Cost(.select, sample, on: machine)
    #expect(scored.basis == .measured && scored.denseNanoseconds == 0)
  }

  @Test func aChildKeepsItsParentAlive() throws {
    weak var watched: Meter?
    var child: Meter?
    do {
      let root = try Meter(label: "root", budget: Amount(tokens: 10))
      watched = root
      child = try Meter(label: "child", parent: root)
    }
    try child?.charge(cost(flops: 3))
    #expect(watched?.read().flops == 3)
    #expect(status { _ = try child?.reserve(Amount(tokens: 11)) } == .budget)
    child = nil
    #expect(watched == nil)
  }

  @Test func labelsAndDepthAreBounded() throws {
    #expect(status { _ = try Meter(label: String(repeating: "x", count: 257)) } == .argument)
    var meter = try Meter(label: "0")
    for level in 1..<Meter.deepest { meter = try Meter(label: "\(level)", parent: meter) }
    #expect(status { _ = try Meter(label: "too deep", parent: meter) } == .argument)
    try meter.charge(cost())
  }
}

private final class Outcomes: Sendable {
  let granted = Atomic<Int>(0)
  let refused = Atomic<Int>(0)
  let exceeded = Atomic<Int>(0)
  let twice = Atomic<Int>(0)
}

@Suite struct BudgetTests {
  private func dollars(_ text: String) throws -> Money { Money(try Decimal(parsing: text), .usd) }

  @Test func reserveThenSettle() throws {
    let meter = try Meter(label: "m", budget: Amount(money: try dollars("1"), tokens: 1000))
    let first = try meter.reserve(Amount(money: try dollars("0.7"), tokens: 600))
    #expect(status { _ = try meter.reserve(Amount(money: try dollars("0.3000001"), tokens: 1)) } == .budget)
    #expect(status { _ = try meter.reserve(Amount(money: try dollars("0.3"), tokens: 401)) } == .budget)
    try meter.settle(first, actual: Amount(money: try dollars("0.1"), tokens: 600))
    let budget = meter.budget()
    #expect(budget.spent == Amount(money: try dollars("0.1"), tokens: 600))
    #expect(budget.reserved == Amount(money: try dollars("0"), tokens: 0))
    _ = try meter.reserve(Amount(money: try dollars("0.9"), tokens: 400))
    #expect(status { _ = try meter.reserve(Amount(money: try dollars("0"), tokens: 1)) } == .budget)
  }

  @Test func everyUnitIsLimited() throws {
    let limits = [
      Amount(tokens: 10), Amount(flops: 10), Amount(nanoseconds: 10), Amount(money: try dollars("0.00000001")),
    ]
    let tooMuch = [
      Amount(tokens: 11), Amount(flops: 11), Amount(nanoseconds: 11), Amount(money: try dollars("0.000000011")),
    ]
    for (limit, amount) in zip(limits, tooMuch) {
      let meter = try Meter(label: "m", budget: limit)
      #expect(status { _ = try meter.reserve(amount) } == .budget)
      _ = try meter.reserve(limit)
    }
  }

  @Test func settlingTwiceOrTooMuchChangesNothing() throws {
    let root = try Meter(label: "root", budget: Amount(tokens: 100))
    let meter = try Meter(label: "m", parent: root)
    let reservation = try meter.reserve(Amount(tokens: 50))
    #expect(status { try meter.settle(reservation, actual: Amount(tokens: 51)) } == .argument)
    #expect(status { try meter.settle(reservation, actual: Amount()) } == .argument)
    #expect(status { try meter.settle(reservation, actual: Amount(tokens: 1, flops: 1)) } == .argument)
    #expect(status { try root.settle(reservation, actual: Amount(tokens: 1)) } == .argument)
    #expect(root.budget().reserved.tokens == 50 && root.budget().spent.tokens == 0)
    try meter.settle(reservation, actual: Amount(tokens: 20))
    #expect(status { try meter.settle(reservation, actual: Amount(tokens: 20)) } == .argument)
    #expect(root.budget().reserved.tokens == 0 && root.budget().spent.tokens == 20)
  }

  /// A reservation without the limited unit, in another currency, or negative would get round the limit.
  @Test func nothingGetsRoundALimit() throws {
    let root = try Meter(label: "root", budget: Amount(money: try dollars("1")))
    let meter = try Meter(label: "m", parent: root)
    let euro = Money(try Decimal(parsing: "0.1"), try Currency("EUR"))
    #expect(status { _ = try meter.reserve(Amount(tokens: 5)) } == .argument)
    #expect(status { _ = try meter.reserve(Amount(money: euro)) } == .argument)
    #expect(status { _ = try meter.reserve(Amount(money: try dollars("-0.1"))) } == .argument)
    #expect(status { _ = try Meter(label: "m", budget: Amount(money: try dollars("-1"))) } == .argument)
    let full = try Meter(label: "m", budget: Amount(tokens: .max))
    _ = try full.reserve(Amount(tokens: .max))
    #expect(status { _ = try full.reserve(Amount(tokens: .max)) } == .budget)
  }

  @Test func aParentsLimitHoldsForItsChildren() throws {
    let root = try Meter(label: "root", budget: Amount(tokens: 100))
    let one = try Meter(label: "one", parent: root, budget: Amount(tokens: 90))
    let two = try Meter(label: "two", parent: root)
    _ = try one.reserve(Amount(tokens: 80))
    #expect(status { _ = try two.reserve(Amount(tokens: 21)) } == .budget)
    #expect(status { _ = try one.reserve(Amount(tokens: 15)) } == .budget)
    #expect(one.budget().reserved.tokens == 80)
    _ = try two.reserve(Amount(tokens: 20))
    #expect(root.budget().reserved.tokens == 100)
  }

  @Test func anUnsettledReservationOfAFreedMeterIsSpent() throws {
    let root = try Meter(label: "root", budget: Amount(tokens: 100))
    do {
      let meter = try Meter(label: "m", parent: root)
      _ = try meter.reserve(Amount(tokens: 60))
    }
    #expect(root.budget().reserved.tokens == 0)
    #expect(root.budget().spent.tokens == 60)
  }

  @Test func limitsCanBeRaisedNotExchanged() throws {
    let meter = try Meter(label: "m", budget: Amount(tokens: 10))
    _ = try meter.reserve(Amount(tokens: 10))
    try meter.setBudget(Amount(tokens: 5))
    #expect(status { _ = try meter.reserve(Amount(tokens: 0)) } == .budget)
    try meter.setBudget(Amount(tokens: 12))
    _ = try meter.reserve(Amount(tokens: 2))
    #expect(status { try meter.setBudget(Amount()) } == .argument)
    #expect(status { try meter.setBudget(Amount(tokens: 5, flops: 1)) } == .argument)
  }

  @Test func reservationsAreBounded() throws {
    let meter = try Meter(label: "m")
    for _ in 0..<Meter.mostReservations { _ = try meter.reserve(Amount(tokens: 1)) }
    #expect(status { _ = try meter.reserve(Amount(tokens: 1)) } == .full)
  }

  /// A thousand threads ask for more than there is; at every moment what is reserved and spent is within the limit.
  @Test func aThousandConcurrentReservationsNeverExceedTheLimit() throws {
    let limit: UInt64 = 30_000
    let money = try dollars("0.03")
    let each = Amount(money: try dollars("0.0001"), tokens: 100)
    let half = Amount(money: try dollars("0.00005"), tokens: 50)
    let root = try Meter(label: "root", budget: Amount(money: money, tokens: limit))
    let tenants = try (0..<4).map { try Meter(label: "tenant \($0)", parent: root, budget: Amount(tokens: limit / 2)) }
    let seen = Outcomes()
    onThreads(1000) { index in
      let tenant = tenants[index % 4]
      guard let reservation = try? tenant.reserve(each) else {
        seen.refused.add(1, ordering: .relaxed)
        return
      }
      seen.granted.add(1, ordering: .relaxed)
      let state = root.budget()
      if (state.reserved.tokens ?? 0) + (state.spent.tokens ?? 0) > limit { seen.exceeded.add(1, ordering: .relaxed) }
      try? tenant.settle(reservation, actual: half)
      if (try? tenant.settle(reservation, actual: half)) != nil { seen.twice.add(1, ordering: .relaxed) }
    }
    let done = UInt64(seen.granted.load(ordering: .relaxed))
    #expect(seen.exceeded.load(ordering: .relaxed) == 0)
    #expect(seen.twice.load(ordering: .relaxed) == 0)
    #expect(done + UInt64(seen.refused.load(ordering: .relaxed)) == 1000)
    #expect(done >= 300 && done <= 600)
    #expect(root.budget().spent.tokens == done * 50)
    #expect(root.budget().reserved.tokens == 0)
    #expect(root.budget().spent.money?.amount == (try Decimal(parsing: "0.00005").multiplied(by: Decimal(done))))
  }

  @Test func theDearestReadingIsReserved() throws {
    let rates = try TokenRates(
      input: Decimal(1, places: 6), cached: Decimal(1, places: 7), cacheWrite: Decimal(2, places: 6),
      output: Decimal(1, places: 5))
    let list = try PriceList(name: "", currency: .usd, source: "", date: "", tiers: [.init(above: 0, rates: rates)])
    #expect(try list.most(input: 1000, output: 100).amount.description == "0.003")
  }
}
