// DeepSeek's published Figure 3 from the architecture and the H800 profile, every row of the tables within 1 %.
import TamisMeter
import TamisRuntime
import Testing

@Suite struct FigureTests {
  let predictor: Predictor
  let price: MachinePrice

  init() throws {
    let machine = try MachineProfile.h800()
    predictor = Predictor(try Architecture.deepSeekV32(), on: machine)
    price = try MachinePrice(name: machine.name, perHour: try #require(machine.pricePerHour))
  }

  private func close(_ value: Double, _ expected: Double, within share: Double = 0.01) -> Bool {
    abs(value - expected) <= share * abs(expected)
  }

  private func number(_ money: Money) -> Double { Double(money.amount.description) ?? .nan }

  /// USD for a million tokens at that position.
  private func dollars(_ keys: Int, _ phase: PhaseKind, _ mode: Mode) throws -> Double {
    number(try predictor.estimate(at: keys, phase, mode).money(price).mid) * 1e6
  }

  struct Row: Sendable {
    let context: Int
    let prefillDense, prefillSparse, decodeDense, decodeSparse, decodeRatio, marginRatio: Double
    let promptRatio: Double?
  }

  static let table = [
    Row(context: 0, prefillDense: 0.0529, prefillSparse: 0.0611, decodeDense: 0.0705, decodeSparse: 0.0952, decodeRatio: 0.74, marginRatio: 0.87, promptRatio: nil),
    Row(context: 2048, prefillDense: 0.0624, prefillSparse: 0.0729, decodeDense: 0.1031, decodeSparse: 0.1444, decodeRatio: 0.71, marginRatio: 0.86, promptRatio: 0.86),
    Row(context: 4096, prefillDense: 0.0720, prefillSparse: 0.0847, decodeDense: 0.1356, decodeSparse: 0.1473, decodeRatio: 0.92, marginRatio: 0.85, promptRatio: 0.86),
    Row(context: 8192, prefillDense: 0.0912, prefillSparse: 0.1009, decodeDense: 0.2007, decodeSparse: 0.1506, decodeRatio: 1.33, marginRatio: 0.90, promptRatio: 0.86),
    Row(context: 16384, prefillDense: 0.1295, prefillSparse: 0.1067, decodeDense: 0.3310, decodeSparse: 0.1572, decodeRatio: 2.11, marginRatio: 1.21, promptRatio: 0.97),
    Row(context: 32768, prefillDense: 0.2061, prefillSparse: 0.1182, decodeDense: 0.5915, decodeSparse: 0.1703, decodeRatio: 3.47, marginRatio: 1.74, promptRatio: 1.26),
    Row(context: 65536, prefillDense: 0.3593, prefillSparse: 0.1412, decodeDense: 1.1124, decodeSparse: 0.1966, decodeRatio: 5.66, marginRatio: 2.55, promptRatio: 1.77),
    Row(context: 98304, prefillDense: 0.5125, prefillSparse: 0.1641, decodeDense: 1.6334, decodeSparse: 0.2228, decodeRatio: 7.33, marginRatio: 3.12, promptRatio: 2.20),
    Row(context: 131071, prefillDense: 0.6658, prefillSparse: 0.1871, decodeDense: 2.1543, decodeSparse: 0.2491, decodeRatio: 8.65, marginRatio: 3.56, promptRatio: 2.56),
  ]

  @Test(arguments: table) func row(_ row: Row) throws {
    let prefillDense = try dollars(row.context, .prefill, .dense)
    let prefillSparse = try dollars(row.context, .prefill, .sparse)
    let decodeDense = try dollars(row.context, .decode, .dense)
    let decodeSparse = try dollars(row.context, .decode, .sparse)
    #expect(close(prefillDense, row.prefillDense), "\(prefillDense)")
    #expect(close(prefillSparse, row.prefillSparse), "\(prefillSparse)")
    #expect(close(decodeDense, row.decodeDense), "\(decodeDense)")
    #expect(close(decodeSparse, row.decodeSparse), "\(decodeSparse)")
    #expect(close(decodeDense / decodeSparse, row.decodeRatio))
    #expect(close(prefillDense / prefillSparse, row.marginRatio))
    guard let expected = row.promptRatio else { return }
    let prompt = try Request(input: row.context, output: 0)
    let ratio = predictor.estimate(prompt, .dense).seconds.mid / predictor.estimate(prompt, .sparse).seconds.mid
    #expect(close(ratio, expected), "\(ratio)")
  }

  @Test(arguments: [(BreakEvenKind.decode, 4871.0), (.prefillMargin, 10646), (.wholePrompt, 18100)])
  func breakEven(_ kind: BreakEvenKind, _ expected: Double) throws {
    let found = predictor.breakEven(kind)
    let mid = try #require(found.mid)
    #expect(close(mid, expected), "\(mid)")
    #expect(try #require(found.low) < mid)
    #expect(try #require(found.high) > mid)
    #expect(found.basis == .analytic)
  }

  struct Plan: Sendable {
    let input, output: Int
    let dense, sparse, ratio, cachedDense, cachedSparse, cachedRatio, list: Double
  }

  /// USD for 1,000 requests; "cached" has 90 % of the input in the cache.
  static let plans = [
    Plan(input: 2000, output: 300, dense: 0.147, sparse: 0.177, ratio: 0.83, cachedDense: 0.044, cachedSparse: 0.058, cachedRatio: 0.75, list: 0.69),
    Plan(input: 4000, output: 500, dense: 0.318, sparse: 0.364, ratio: 0.87, cachedDense: 0.097, cachedSparse: 0.107, cachedRatio: 0.91, list: 1.33),
    Plan(input: 8000, output: 500, dense: 0.673, sparse: 0.744, ratio: 0.90, cachedDense: 0.172, cachedSparse: 0.156, cachedRatio: 1.10, list: 2.45),
    Plan(input: 16000, output: 500, dense: 1.609, sparse: 1.576, ratio: 1.02, cachedDense: 0.363, cachedSparse: 0.248, cachedRatio: 1.46, list: 4.69),
    Plan(input: 32000, output: 1000, dense: 4.673, sparse: 3.460, ratio: 1.35, cachedDense: 1.211, cachedSparse: 0.543, cachedRatio: 2.23, list: 9.38),
    Plan(input: 64000, output: 1000, dense: 14.06, sparse: 7.61, ratio: 1.85, cachedDense: 3.25, cachedSparse: 1.08, cachedRatio: 3.02, list: 18.3),
    Plan(input: 126000, output: 2000, dense: 47.96, sparse: 17.94, ratio: 2.67, cachedDense: 11.90, cachedSparse: 2.75, cachedRatio: 4.33, list: 36.1),
  ]

  @Test(arguments: plans) func plan(_ plan: Plan) throws {
    let fresh = try Request(input: plan.input, output: plan.output)
    let cached = try Request(input: plan.input, cached: plan.input / 10 * 9, output: plan.output)
    for (request, dense, sparse, ratio) in [
      (fresh, plan.dense, plan.sparse, plan.ratio), (cached, plan.cachedDense, plan.cachedSparse, plan.cachedRatio),
    ] {
      let costDense = number(try predictor.estimate(request, .dense).money(price).mid) * 1000
      let costSparse = number(try predictor.estimate(request, .sparse).money(price).mid) * 1000
      #expect(close(costDense, dense), "\(costDense)")
      #expect(close(costSparse, sparse), "\(costSparse)")
      #expect(close(costDense / costSparse, ratio), "\(costDense / costSparse)")
    }
    let usage = try Usage(input: UInt64(plan.input), output: UInt64(plan.output))
    #expect(close(number(try PriceList.deepSeekV32().bill(usage).money) * 1000, plan.list))
  }

  @Test func everyDollarHasBounds() throws {
    let money = try predictor.estimate(try Request(input: 4000, output: 500), .sparse).money(price)
    #expect(money.low.amount <= money.mid.amount && money.mid.amount < money.high.amount)
    #expect(close(number(money.high) / number(money.mid), 2.1))
  }
}
