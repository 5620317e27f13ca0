// How sparse an attention is, and how much of it an indexer finds: the attention mass that k keys capture when they are
// chosen by the attention itself (oracle), by the indexer, by nearness and at random, and how many of the oracle's keys
// the indexer chooses. It measures captured rows and claims nothing about a model's answers.

import Glibc
package import TamisRuntime

package struct DiagnosisOptions {
  package var k: [Int] = []
  /// The mass for which the smallest sufficient k is looked for.
  package var mass = 0.9
  /// Rows that see fewer keys are left out; nil: half of the longest sequence, or one more than the largest k.
  package var leastVisible: Int?

  package init() {}
}

/// Means over rows, for one k.
package struct CapturedMass: Sendable {
  package var k = 0
  package var oracle = 0.0
  package var indexer = 0.0
  package var recency = 0.0
  /// The expectation, k of all that a row sees.
  package var random = 0.0
  /// Of the oracle's k keys, how many the indexer chooses.
  package var recall = 0.0

  package init(
    k: Int = 0, oracle: Double = 0, indexer: Double = 0, recency: Double = 0, random: Double = 0, recall: Double = 0
  ) {
    self.k = k
    self.oracle = oracle
    self.indexer = indexer
    self.recency = recency
    self.random = random
    self.recall = recall
  }
}

package struct Diagnosis: Sendable {
  package var rows = 0
  package var sequences = 0
  package var warnings: Warnings = []
  /// Mean divergence in nats, over everything a row sees.
  package var divergence = 0.0
  /// The smallest k that captures the wanted mass on average.
  package var oracleK = 0
  package var indexerK = 0
  /// In the order of the options.
  package var at: [CapturedMass] = []

  package init() {}
}

extension Diagnosis {
  /// One JSON object; the names are the header's.
  package func json(mass: Double) throws(TamisError) -> String {
    let named: [(String, Double)] = [("divergence", divergence), ("mass", mass)]
    var text =
      "{\"sequences\":\(sequences),\"rows\":\(rows),\"warnings\":[\(warnings.names)],"
      + "\(try Diagnosis.members(named)),\"oracle_k\":\(oracleK),\"indexer_k\":\(indexerK),\"at\":["
    for (i, at) in at.enumerated() {
      let members = try Diagnosis.members([
        ("oracle", at.oracle), ("indexer", at.indexer), ("recency", at.recency), ("random", at.random),
        ("recall", at.recall),
      ])
      text += "\(i == 0 ? "" : ","){\"k\":\(at.k),\(members)}"
    }
    return text + "]}"
  }

  private static func members(_ values: [(name: String, value: Double)]) throws(TamisError) -> String {
    var text = ""
    for (name, value) in values {
      guard value.isFinite else { throw TamisError(.argument, "diagnosis: \(name) is \(value), which JSON cannot say") }
      text += "\(text.isEmpty ? "" : ",")\"\(name)\":\(value)"
    }
    return text
  }
}

extension LearnedIndexer {
  package func diagnose(_ capture: Capture, _ options: DiagnosisOptions) throws(TamisError) -> Diagnosis {
    try busy.enter("indexer")
    defer { busy.leave() }
    try capture.busy.enter("capture")
    defer { capture.busy.leave() }
    try check(capture)
    guard options.k.count <= 64, options.k.allSatisfy({ $0 >= 1 && $0 <= Capture.tokenLimit }) else {
      throw TamisError(.argument, "options: expected up to 64 numbers k, each at least 1")
    }
    guard options.mass > 0, options.mass <= 1 else {
      throw TamisError(.argument, "options: mass is \(options.mass), expected more than 0 and at most 1")
    }
    let sizes = try StepMemory.sizes(capture)
    let least = options.leastVisible ?? min(sizes.tokens, max(sizes.tokens / 2, (options.k.max() ?? 0) &+ 1))
    let memory = try StepMemory(
      context, shape, tokens: sizes.tokens, rows: StepMemory.tile, targetFloats: sizes.target, gradients: false)
    defer { memory.release(context) }
    let table = RotaryTable.fill(memory, frequencies: frequencies)
    var sums = try DiagnosisSums(context, tokens: sizes.tokens, k: options.k)
    let step = Step(context, shape, memory, table, selected: 0)
    let token = context.beginCall()
    for sequence in capture.sequences {
      step.keys.forward(parameters.start, hidden: sequence.hidden.start, tokens: sequence.tokens)
      var first = 0
      while first < sequence.rows {
        try context.checkCancelled(token)
        let count = min(StepMemory.tile, sequence.rows &- first)
        try context.run { () throws(TamisError) in
          step.scoreTile(parameters.start, sequence, first: first, count: count) { row, scores, p in
            let visible = sequence.visible(row)
            guard visible >= least else { return }
            sums.add(
              scores: scores, p: p, visible: visible, position: Int(sequence.positions.start[row]),
              entropy: sequence.entropy.start[row])
          }
        }
        first &+= count
      }
      sums.endSequence()
    }
    guard sums.rows > 0 else {
      throw TamisError(.argument, "capture: no row sees \(least) keys; lower least_visible or capture longer sequences")
    }
    return sums.result(mass: options.mass)
  }
}

extension Step {
  /// Index scores and attention of up to a tile of consecutive rows, one after the other, after keys.forward.
  func scoreTile(
    _ parameters: UnsafePointer<Float>, _ sequence: CapturedSequence, first: Int, count: Int,
    _ body: (_ row: Int, _ scores: UnsafeMutablePointer<Float>, _ p: UnsafePointer<Float>) -> Void
  ) {
    for i in 0..<max(count, 0) {
      let row = first &+ i
      (memory.features + i &* shape.features).update(
        from: sequence.features.start + row &* shape.features, count: shape.features)
      (memory.hidden + i &* shape.width).update(
        from: sequence.hidden.start + Int(sequence.positions.start[row]) &* shape.width, count: shape.width)
    }
    queries(parameters, count) { Int(sequence.positions.start[first &+ $0]) }
    let scores = memory.scores(0)
    accumulate(
      context.kernels, memory.query, (shape.dim, 1), memory.keyTransposed, memory.stride, rows: count &* shape.heads,
      (sequence.tokens &+ 15) & ~15, shape.dim, add: false, scores, memory.stride)
    let target = memory.target(0, shape)
    TargetRows.compute(context.kernels, sequence, count: count, scratch: target) { first &+ $0 }
    for i in 0..<max(count, 0) {
      let mixed = memory.mixed(0, shape)
      context.kernels.pointee.mix(
        scores + i &* shape.heads &* memory.stride, memory.stride &* 4, memory.weight + i &* shape.paddedHeads,
        Int32(truncatingIfNeeded: shape.heads), Int32(truncatingIfNeeded: sequence.visible(first &+ i)), mixed)
      body(first &+ i, mixed, TargetRows.pointer(sequence, row: first &+ i, inTile: i, scratch: target))
    }
  }
}
