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

  /// Context, then USD for a million tokens: prefill dense and DSA, decode dense and DSA; then dense/DSA of decode, of
  /// prefill at the margin and of a whole prompt.
  static let table = rows(
    """
         0  0.0529 0.0611 0.0705 0.0952  0.74 0.87 nan
      2048  0.0624 0.0729 0.1031 0.1444  0.71 0.86 0.86
      4096  0.0720 0.0847 0.1356 0.1473  0.92 0.85 0.86
      8192  0.0912 0.1009 0.2007 0.1506  1.33 0.90 0.86
     16384  0.1295 0.1067 0.3310 0.1572  2.11 1.21 0.97
     32768  0.2061 0.1182 0.5915 0.1703  3.47 1.74 1.26
     65536  0.3593 0.1412 1.1124 0.1966  5.66 2.55 1.77
     98304  0.5125 0.1641 1.6334 0.2228  7.33 3.12 2.20
    131071  0.6658 0.1871 2.1543 0.2491  8.65 3.56 2.56
    """)

  private static func rows(_ text: String) -> [[Double]] {
    text.split(separator: "\n").map { $0.split(separator: " ").compactMap { Double($0) } }
  }

  @Test(arguments: table) func row(_ row: [Double]) throws {
    try #require(row.count == 8)
    let context = Int(row[0])
    let found = [
      try dollars(context, .prefill, .dense), try dollars(context, .prefill, .sparse),
      try dollars(context, .decode, .dense), try dollars(context, .decode, .sparse),
    ]
    for (value, expected) in zip(found, row[1...]) { #expect(close(value, expected), "\(value), \(expected)") }
    #expect(close(found[2] / found[3], row[5]))
    #expect(close(found[0] / found[1], row[6]))
    guard context > 0 else { return }
    let prompt = try Request(input: context, output: 0)
    let ratio = predictor.estimate(prompt, .dense).seconds.mid / predictor.estimate(prompt, .sparse).seconds.mid
    #expect(close(ratio, row[7]), "\(ratio)")
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

  /// Input and output tokens, then USD for 1,000 requests: dense, DSA, their ratio; the same with 90 % of the input
  /// in the cache; by the list price.
  static let plans = rows(
    """
      2000  300  0.147 0.177 0.83  0.044 0.058 0.75  0.69
      4000  500  0.318 0.364 0.87  0.097 0.107 0.91  1.33
      8000  500  0.673 0.744 0.90  0.172 0.156 1.10  2.45
     16000  500  1.609 1.576 1.02  0.363 0.248 1.46  4.69
     32000 1000  4.673 3.460 1.35  1.211 0.543 2.23  9.38
     64000 1000  14.06 7.61  1.85  3.25  1.08  3.02  18.3
    126000 2000  47.96 17.94 2.67  11.90 2.75  4.33  36.1
    """)

  @Test(arguments: plans) func plan(_ plan: [Double]) throws {
    try #require(plan.count == 9)
    let (input, output) = (Int(plan[0]), Int(plan[1]))
    for (cached, expected) in [(0, plan[2...4]), (input / 10 * 9, plan[5...7])] {
      let request = try Request(input: input, cached: cached, output: output)
      let dense = number(try predictor.estimate(request, .dense).money(price).mid) * 1000
      let sparse = number(try predictor.estimate(request, .sparse).money(price).mid) * 1000
      for (value, figure) in zip([dense, sparse, dense / sparse], expected) {
        #expect(close(value, figure), "\(value), \(figure)")
      }
    }
    let usage = try Usage(input: UInt64(input), output: UInt64(output))
    #expect(close(number(try PriceList.deepSeekV32().bill(usage).money) * 1000, plan[8]))
  }

  @Test func everyDollarHasBounds() throws {
    let money = try predictor.estimate(try Request(input: 4000, output: 500), .sparse).money(price)
    #expect(money.low.amount <= money.mid.amount && money.mid.amount < money.high.amount)
    #expect(close(number(money.high) / number(money.mid), 2.1))
  }
}
