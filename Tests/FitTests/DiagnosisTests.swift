// The diagnosis against plain sorting in Double.

import TamisReference
import TamisRuntime
import TamisTestSupport
import Testing

@testable import TamisFit

@Suite struct DiagnosisTests {
  @Test(arguments: [false, true], [false, true])
  func masses(allVisible: Bool, byHeads: Bool) throws {
    let context = try makeContext()
    let host = Host(allVisible: allVisible)
    let capture = Capture(context)
    try host.add(to: capture, byHeads: byHeads)
    let indexer = try makeIndexer(context)
    var options = DiagnosisOptions()
    options.k = [1, 5, 30, 1000]
    options.leastVisible = 15
    options.mass = 0.8
    let found = try indexer.diagnose(capture, options)

    let reference = IndexerLoss(
      heads: 3, dim: 16, rope: 8, frequencies: indexer.frequencies.map(Double.init),
      hidden: rows(host.hidden.map(Float.init), host.width), features: rows(host.query.map(Float.init), host.features),
      positions: host.positions.map(Int.init), attention: host.attention, allVisible: allVisible, selected: 0)
    let parameters = try IndexerLoss.parameters(indexer)
    let keys = (0..<host.tokens).map { reference.key(parameters, $0) }
    let used = host.positions.indices.filter { host.visible($0) >= 15 }
    #expect(found.rows == used.count && found.sequences == 1)
    func mean(_ body: (Int) -> Double) -> Double { used.map(body).reduce(0, +) / Double(used.count) }
    func best(_ values: [Double]) -> [Int] { values.indices.sorted { (-values[$0], $0) < (-values[$1], $1) } }
    let attention = host.attention
    let scores = host.positions.indices.map { reference.scores(parameters, row: $0, keys: keys) }
    func mass(_ row: Int, _ order: [Int], _ k: Int) -> Double { order.prefix(k).reduce(0) { $0 + attention[row][$1] } }
    func byAttention(_ row: Int) -> [Int] { best(Array(attention[row][0..<host.visible(row)])) }
    func byNearness(_ row: Int) -> [Int] {
      let position = Int(host.positions[row])
      return (0..<host.visible(row)).sorted { (abs($0 - position), $0) < (abs($1 - position), $1) }
    }
    for (slot, k) in options.k.enumerated() {
      let at = found.at[slot]
      #expect(at.k == k)
      #expect(abs(at.oracle - mean { mass($0, byAttention($0), k) }) < 1e-5)
      #expect(abs(at.indexer - mean { mass($0, best(scores[$0]), k) }) < 1e-5)
      #expect(abs(at.recency - mean { mass($0, byNearness($0), k) }) < 1e-5)
      #expect(abs(at.random - mean { Double(min(k, host.visible($0))) / Double(host.visible($0)) }) < 1e-9)
      let recall = mean { row in
        let chosen = Set(byAttention(row).prefix(k))
        return Double(chosen.intersection(best(scores[row]).prefix(k)).count) / Double(chosen.count)
      }
      #expect(abs(at.recall - recall) < 1e-9)
    }
    #expect(found.oracleK == (1...40).first { k in mean { mass($0, byAttention($0), k) } >= 0.8 })
    #expect(found.indexerK == (1...40).first { k in mean { mass($0, best(scores[$0]), k) } >= 0.8 })
    options.leastVisible = 41
    #expect(status { _ = try indexer.diagnose(capture, options) } == .argument)
    options.leastVisible = nil
    options.mass = .nan
    #expect(status { _ = try indexer.diagnose(capture, options) } == .argument)
  }
}
