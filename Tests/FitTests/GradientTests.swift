// The gradient of every parameter against central differences of the Double reference, for both kinds of target, both
// losses, causal and full visibility, on every instruction set; and the loss itself.

import TamisReference
import TamisRuntime
import TamisTestSupport
import Testing

@testable import TamisFit

@Suite struct GradientTests {
  struct Case: Sendable, CustomTestStringConvertible {
    let byHeads, allVisible: Bool
    let selected: Int
    var testDescription: String { "\(byHeads ? "heads" : "rows") \(allVisible ? "full" : "causal") k=\(selected)" }
  }

  private static let cases = [
    Case(byHeads: false, allVisible: false, selected: 0), Case(byHeads: true, allVisible: false, selected: 0),
    Case(byHeads: false, allVisible: true, selected: 0), Case(byHeads: false, allVisible: false, selected: 6),
    Case(byHeads: true, allVisible: true, selected: 6),
  ]

  @Test(arguments: cases)
  func gradientsAreDifferences(of given: Case) throws {
    for isa in usableISAs {
      let context = try makeContext(isa: isa)
      let host = Host(allVisible: given.allVisible)
      let capture = Capture(context)
      try host.add(to: capture, byHeads: given.byHeads)
      let indexer = try makeIndexer(context)
      try spread(indexer)
      let (loss, gradient) = try evaluate(indexer, capture, selected: given.selected)
      let reference = reference(host, indexer, selected: given.selected)
      let parameters = try IndexerLoss.parameters(indexer)
      #expect(abs(loss - reference.loss(parameters)) <= 1e-5 * max(1, abs(loss)), "\(isa)")
      for which in IndexerTensor.allCases {
        let expected = differences(reference, parameters, which)
        let largest = expected.map(abs).max() ?? 0
        let got = try values(gradient, which)
        #expect(largest > 1e-4)
        #expect(got.count == expected.count)
        let error = zip(got, expected).map { abs(Double($0) - $1) }.max() ?? 0
        #expect(error <= 1e-5 * largest + 1e-7, "\(isa) \(which.name): \(error) of \(largest)")
      }
    }
  }

  /// More rows than one tile, more tiles than groups, more keys than a block: against the reference's loss only in one
  /// direction for each tensor, because every parameter would take too long.
  @Test func manyTilesAreOneSum() throws {
    let context = try makeContext()
    let host = Host(tokens: 200, positions: (0..<180).map { Int32(($0 * 37) % 200) })
    let capture = Capture(context)
    try host.add(to: capture, byHeads: false)
    let indexer = try makeIndexer(context)
    try spread(indexer)
    let (loss, gradient) = try evaluate(indexer, capture, selected: 0)
    let reference = reference(host, indexer, selected: 0)
    let parameters = try IndexerLoss.parameters(indexer)
    #expect(abs(loss - reference.loss(parameters)) <= 1e-5)
    for which in IndexerTensor.allCases {
      let got = try values(gradient, which).map(Double.init)
      let norm = got.reduce(0) { $0 + $1 * $1 }.squareRoot()
      let step = 1e-5 / norm
      var (up, down) = (parameters, parameters)
      up.change(which) { $0 + step * got[$1] }
      down.change(which) { $0 - step * got[$1] }
      let slope = (reference.loss(up) - reference.loss(down)) / 2e-5
      #expect(abs(slope - norm) <= 1e-4 * norm, "\(which.name)")
    }
  }

  /// Head weights as large as a fitted indexer's, and a normalisation that does something.
  private func spread(_ indexer: LearnedIndexer) throws {
    var random = SplitMix64(seed: 11)
    for which in [IndexerTensor.gain, .bias, .weights] {
      let scale: Float = which == .weights ? 40 : 1
      let changed = try values(indexer, which).map { $0 * scale + Float(0.3 * random.normal()) }
      try withTensor(changed, which.dimensions(indexer.shape)) { tensor in try indexer.write([(which, tensor)]) }
    }
  }

  /// The loss over all rows of the first sequence, and its gradient in the place of an indexer's parameters.
  private func evaluate(
    _ indexer: LearnedIndexer, _ capture: Capture, selected: Int
  ) throws -> (Double, LearnedIndexer) {
    let context = indexer.context
    let sequence = capture.sequences[0]
    let sizes = try StepMemory.sizes(capture)
    let memory = try StepMemory(
      context, indexer.shape, tokens: sizes.tokens, rows: sizes.rows, targetFloats: sizes.target, gradients: true)
    defer { memory.release(context) }
    let table = RotaryTable.fill(memory, frequencies: indexer.frequencies)
    let gradient = try makeIndexer(context)
    gradient.parameters.start.update(repeating: .nan, count: gradient.parameters.count)
    let positions = sequence.positions.start
    let order = (0..<Int32(sequence.rows)).sorted { positions[Int($0)] < positions[Int($1)] }
    let loss = order.withUnsafeBufferPointer { rows in
      Step(context, indexer.shape, memory, table, selected: selected).run(
        indexer.parameters.start, sequence, rows: rows, gradient: gradient.parameters.start)
    }
    return (Double(loss), gradient)
  }

  private func reference(_ host: Host, _ indexer: LearnedIndexer, selected: Int) -> IndexerLoss {
    IndexerLoss(
      heads: indexer.shape.heads, dim: indexer.shape.dim, rope: indexer.shape.rope,
      frequencies: indexer.frequencies.map(Double.init), hidden: rows(host.hidden.map(Float.init), host.width),
      features: rows(host.query.map(Float.init), host.features), positions: host.positions.map(Int.init),
      attention: host.attention, allVisible: host.allVisible, selected: selected)
  }

  /// (L(p + e) - L(p - e)) / 2e for every parameter of a tensor.
  private func differences(
    _ reference: IndexerLoss, _ parameters: IndexerLoss.Parameters, _ which: IndexerTensor
  ) -> [Double] {
    let step = 1e-5
    return (0..<parameters.count(which)).map { index in
      var (up, down) = (parameters, parameters)
      up.change(which) { $1 == index ? $0 + step : $0 }
      down.change(which) { $1 == index ? $0 - step : $0 }
      return (reference.loss(up) - reference.loss(down)) / (2 * step)
    }
  }
}

extension IndexerLoss.Parameters {
  func count(_ which: IndexerTensor) -> Int {
    switch which {
    case .query: query.count * query[0].count
    case .key: key.count * key[0].count
    case .gain: gain.count
    case .bias: bias.count
    case .weights: weights.count * weights[0].count
    }
  }

  /// Replaces each parameter of a tensor; body is given its value and its number.
  mutating func change(_ which: IndexerTensor, _ body: (Double, Int) -> Double) {
    func matrix(_ rows: [[Double]]) -> [[Double]] {
      rows.enumerated().map { o, row in row.enumerated().map { i, x in body(x, o * row.count + i) } }
    }
    func vector(_ row: [Double]) -> [Double] { row.enumerated().map { body($1, $0) } }
    switch which {
    case .query: query = matrix(query)
    case .key: key = matrix(key)
    case .gain: gain = vector(gain)
    case .bias: bias = vector(bias)
    case .weights: weights = matrix(weights)
    }
  }
}
