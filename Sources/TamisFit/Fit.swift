// Fits an indexer to what was captured: sequences in random order, a sample of rows of each, a step of Adam. It works
// on a copy, so that a fit which fails, diverges or is cancelled leaves the indexer as it was. An indexer that has
// learnt nothing yet begins in closed form (ClosedForm.swift). Equal inputs and an equal seed give equal bits, whatever
// the number of threads.

import Glibc
package import TamisRuntime

package struct FitOptions {
  package typealias Progress =
    @convention(c) (_ user: UnsafeMutableRawPointer?, _ step: UInt32, _ steps: UInt32, _ loss: Double) -> Int32

  package var steps = 400
  /// Query rows in a step.
  package var rows = 128
  package var learningRate: Float = 0.01
  /// 0: the whole sequence (warm-up); else the k keys the indexer chooses (sparse stage).
  package var selected = 0
  package var seed: UInt64 = 0
  /// An indexer that has learnt nothing yet begins as it is, not in closed form.
  package var randomStart = false
  /// Called after every step on the calling thread; not 0: stop, as cancelled.
  package var progress: Progress?
  package var user: UnsafeMutableRawPointer?

  package init() {}
}

package struct FitReport: Sendable {
  package var steps = 0
  package var sequences = 0
  package var rows = 0
  /// Mean divergence of the first and the last steps, a sixteenth of all each; nats.
  package var firstLoss = 0.0
  package var lastLoss = 0.0
  package var seconds = 0.0
  /// Of the matrix products, multiply and add counted separately.
  package var flops: UInt64 = 0
  package var warnings: Warnings = []
  /// The fit began in closed form.
  package var closedStart = false
}

/// What a reader of a report should know before believing it.
package struct Warnings: OptionSet, Sendable {
  package let rawValue: UInt32
  package init(rawValue: UInt32) { self.rawValue = rawValue }
  /// Fewer than 8 sequences: diffuse layers overfit.
  package static let fewSequences = Warnings(rawValue: 1)
  /// Fewer than 1,024 query rows.
  package static let fewRows = Warnings(rawValue: 2)

  /// The fit ended no nearer to the attention than equal shares for every key would be.
  package static let nothingLearnt = Warnings(rawValue: 4)

  /// As JSON strings with commas between; of a diagnosis, which knows the first two.
  var names: String {
    switch (contains(.fewSequences), contains(.fewRows)) {
    case (true, true): "\"few sequences\",\"few rows\""
    case (true, false): "\"few sequences\""
    case (false, true): "\"few rows\""
    case (false, false): ""
    }
  }

  static func of(sequences: Int, rows: Int) -> Warnings {
    var warnings: Warnings = []
    if sequences < 8 { warnings.insert(.fewSequences) }
    if rows < 1024 { warnings.insert(.fewRows) }
    return warnings
  }
}

extension LearnedIndexer {
  package func fit(_ capture: Capture, _ options: FitOptions) throws(TamisError) -> FitReport {
    try busy.enter("indexer")
    defer { busy.leave() }
    try capture.busy.enter("capture")
    defer { capture.busy.leave() }
    try check(capture, options)
    let began = Clock.wall()
    let token = context.beginCall()
    var run = try FitRun(self, capture, options, token)
    defer { run.release() }
    for step in 0..<options.steps {
      try context.checkCancelled(token)
      let loss = try run.step(step)
      if let progress = options.progress,
        progress(
          options.user, UInt32(truncatingIfNeeded: step &+ 1), UInt32(truncatingIfNeeded: options.steps), Double(loss))
          != 0
      {
        throw TamisError(.cancelled, "fit: stopped by progress after step \(step &+ 1)")
      }
    }
    try context.checkCancelled(token)
    var report = try run.finish()
    replace(run.parameters)
    report.seconds = Double(Clock.wall() &- began) * 1e-9
    return report
  }

  func check(_ capture: Capture, _ options: FitOptions) throws(TamisError) {
    try check(capture)
    guard (1...1 << 24).contains(options.steps) else {
      throw TamisError(.argument, "options: steps is \(options.steps), expected 1 to 2^24")
    }
    guard (1...4096).contains(options.rows) else {
      throw TamisError(.argument, "options: rows is \(options.rows), expected 1 to 4096")
    }
    guard options.learningRate.isFinite, options.learningRate > 0 else {
      throw TamisError(.argument, "options: learning_rate is \(options.learningRate), expected more than 0")
    }
    guard options.selected >= 0, options.selected <= Capture.tokenLimit else {
      throw TamisError(.argument, "options: selected is \(options.selected)")
    }
  }

  func check(_ capture: Capture) throws(TamisError) {
    guard let (width, features) = capture.sizes else { throw TamisError(.argument, "capture: is empty") }
    guard width == shape.width, features == shape.features else {
      throw TamisError(
        .argument,
        "capture: hidden states of \(width) and features of \(features), the indexer takes \(shape.width) and "
          + "\(shape.features)")
    }
  }
}

/// A fit while it runs.
private struct FitRun {
  let parameters: Floats
  private let gradient: Floats
  private let options: FitOptions
  private let shape: IndexerShape
  private let capture: Capture
  private let context: Context
  private let work: Step
  private var adam: Adam
  private var random: SeededRandom
  private let numbers: Positions  // [most rows of a sequence]
  private var order: [Int]
  private let closedStart: Bool
  private var losses = LossRecord()
  private var flops: UInt64 = 0

  init(
    _ indexer: LearnedIndexer, _ capture: Capture, _ options: FitOptions, _ token: CallToken
  ) throws(TamisError) {
    let (context, shape) = (indexer.context, indexer.shape)
    self.context = context
    self.options = options
    self.shape = shape
    self.capture = capture
    parameters = try Floats(context, shape.parameters, "fit")
    parameters.copy(indexer.parameters)
    closedStart =
      indexer.isRandom && !options.randomStart
      ? try ClosedForm.begin(context, shape, capture, token, parameters) : false
    gradient = try Floats(context, shape.parameters, "fit")
    adam = try Adam(context, shape.parameters)
    random = SeededRandom(seed: options.seed)
    order = Array(capture.sequences.indices)
    numbers = try Positions(context, capture.sequences.reduce(0) { max($0, $1.rows) })
    let sizes = try StepMemory.sizes(capture)
    let memory = try StepMemory(
      context, shape, tokens: sizes.tokens, rows: min(options.rows, sizes.rows), targetFloats: sizes.target,
      gradients: true)
    work = Step(
      context, shape, memory, RotaryTable.fill(memory, frequencies: indexer.frequencies), selected: options.selected)
  }

  func release() { work.memory.release(context) }

  mutating func step(_ number: Int) throws(TamisError) -> Float {
    let turn = number % order.count
    if turn == 0 { shuffle() }
    let sequence = capture.sequences[order[turn]]
    let rows = sample(sequence)
    let loss = work.run(parameters.start, sequence, rows: rows, gradient: gradient.start)
    guard loss.isFinite, gradient.allFinite else {
      throw TamisError(
        .argument, "fit: diverged at step \(number &+ 1), the loss is \(loss); try a smaller learning_rate")
    }
    try losses.add(loss, equal: equalShares(sequence, rows), of: options.steps)
    adam.step(parameters, gradient: gradient, parts: rates(number))
    flops &+= work.flops(sequence, rows)
    return loss
  }

  func finish() throws(TamisError) -> FitReport {
    guard parameters.allFinite else {
      throw TamisError(.argument, "fit: diverged, parameters are no longer finite; try a smaller learning_rate")
    }
    var report = FitReport()
    report.steps = options.steps
    report.sequences = capture.count
    report.rows = capture.rows
    report.firstLoss = losses.first
    report.lastLoss = losses.last
    report.flops = flops
    report.closedStart = closedStart
    report.warnings = .of(sequences: capture.count, rows: capture.rows)
    if options.selected == 0, losses.learntNothing { report.warnings.insert(.nothingLearnt) }
    return report
  }

  /// A tenth of the steps (at least ten) up, then down in a straight line to a twentieth. What a step of Adam changes in
  /// an output grows with the number of inputs: matrices with more than 128 go slower, by the root.
  private func rates(_ step: Int) -> [(end: Int, rate: Float)] {
    let warm = min(1, Float(step &+ 1) / Float(max(10, options.steps / 10)))
    let rate = options.learningRate * warm * (1 - 0.95 * Float(step) / Float(options.steps))
    func of(_ inputs: Int) -> Float { rate * min(1, (128 / Float(inputs)).squareRoot()) }
    return [
      (shape.keyAt, of(shape.features)), (shape.gainAt, of(shape.width)), (shape.weightAt, rate),
      (shape.parameters, of(shape.width)),
    ]
  }

  /// The mean divergence of the rows from equal shares for all that they see.
  private func equalShares(_ sequence: CapturedSequence, _ rows: UnsafeBufferPointer<Int32>) -> Double {
    var sum: Float = 0
    for row in rows { sum += sequence.entropy.start[Int(row)] + logf(Float(sequence.visible(Int(row)))) }
    return Double(sum) / Double(max(rows.count, 1))
  }

  private mutating func shuffle() {
    for i in order.indices.dropFirst() { order.swapAt(i, random.integer(below: i &+ 1)) }
  }

  /// Distinct rows of a sequence, positions ascending. Selection sampling keeps the rows' own order, which mostly is
  /// that already; what is left is sorted by insertion.
  private mutating func sample(_ sequence: CapturedSequence) -> UnsafeBufferPointer<Int32> {
    let count = min(options.rows, sequence.rows)
    let positions = sequence.positions.start
    var chosen = 0
    for row in 0..<max(sequence.rows, 0) where random.integer(below: sequence.rows &- row) < count &- chosen {
      var at = chosen
      while at > 0, positions[Int(numbers.start[at &- 1])] > positions[row] {
        numbers.start[at] = numbers.start[at &- 1]
        at &-= 1
      }
      numbers.start[at] = Int32(truncatingIfNeeded: row)
      chosen &+= 1
    }
    return UnsafeBufferPointer(start: numbers.start, count: chosen)
  }
}

/// The losses at both ends of a fit, whether it runs away, and whether it came to anything.
private struct LossRecord {
  private var start = 0.0
  private var startCount = 0
  private var end = 0.0
  private var endCount = 0
  private var endEqual = 0.0
  private var recent = 0.0
  private var count = 0

  var first: Double { start / Double(max(startCount, 1)) }
  var last: Double { end / Double(max(endCount, 1)) }
  /// No nearer to the attention than equal shares would be.
  var learntNothing: Bool { end >= 0.98 * endEqual }

  mutating func add(_ loss: Float, equal: Double, of steps: Int) throws(TamisError) {
    let value = Double(loss)
    let part = max(1, steps / 16)
    if count < part { (start, startCount) = (start + value, startCount &+ 1) }
    if count >= steps &- part { (end, endEqual, endCount) = (end + value, endEqual + equal, endCount &+ 1) }
    recent = count == 0 ? value : 0.9 * recent + 0.1 * value
    count &+= 1
    guard recent <= 2 * first + 1 else {
      throw TamisError(
        .argument,
        "fit: diverged at step \(count), the loss went from \(first) to \(recent); try a smaller learning_rate")
    }
  }
}

extension Step {
  /// Of the products of a step: three over what each row sees, and the projections with their gradients.
  func flops(_ sequence: CapturedSequence, _ rows: UnsafeBufferPointer<Int32>) -> UInt64 {
    var (pairs, longest) = (0, 0)
    for row in rows {
      pairs &+= sequence.visible(Int(row))
      longest = max(longest, sequence.visible(Int(row)))
    }
    let scores = 3 &* pairs &* shape.queryWidth
    let queries = 2 &* rows.count &* (shape.features &* shape.queryWidth &+ shape.width &* shape.heads)
    let keys = 2 &* longest &* shape.width &* shape.dim
    return 2 &* UInt64(truncatingIfNeeded: scores &+ queries &+ keys &+ sequence.attention.products(pairs: pairs))
  }
}

extension CapturedAttention {
  /// Multiply-adds that computing p for so many pairs takes.
  func products(pairs: Int) -> Int {
    if case .heads(let host) = self { pairs &* host.heads &* host.dim } else { 0 }
  }
}

extension StepMemory {
  /// The most of any captured sequence.
  static func sizes(_ capture: Capture) throws(TamisError) -> (tokens: Int, rows: Int, target: Int) {
    var (tokens, rows, target) = (0, 0, 0)
    for sequence in capture.sequences {
      tokens = max(tokens, sequence.tokens)
      rows = max(rows, sequence.rows)
      target = max(target, try TargetRows.scratch(sequence))
    }
    return (tokens, rows, target)
  }
}
