// From timed runs of the operators to a machine's profile. Each part of the work gets the straight line that fits its
// runs best in relative terms: seconds of a query = fixed + FLOP / rate. Refuses runs that say nothing.

package import TamisRuntime

package struct Calibration: Sendable {
  /// One size of one operator, for a single query row.
  package struct Run: Sendable {
    package let flops: Double
    package let bytes: Double
    package let seconds: Double
    /// A mean run over the best one, at least 1.
    package let spread: Double
    package init(flops: Double, bytes: Double, seconds: Double, spread: Double) {
      self.flops = flops
      self.bytes = bytes
      self.seconds = seconds
      self.spread = spread
    }
  }

  package struct Phase: Sendable {
    package var index: [Run] = []
    package var dense: [Run] = []
    package var sparse: [Run] = []
    package var linear: [Run] = []
    /// Attention in the expanded form with the expansion; empty: there is none.
    package var expanded: [Run] = []
    /// One row times one matrix in cold memory: its bytes stand for `flops`; empty: as memory.
    package var weights: [Run] = []
    /// Steps of a model itself; nil: none were timed.
    package var steps: Steps?
    package init() {}
    fileprivate var all: [Run] { index + dense + sparse + linear + expanded }
  }

  /// What a model's own steps took, added up over all its layers and for one step.
  package struct Steps: Sendable {
    package var rows = 0
    package var layers = 0
    /// Matrices that a token is multiplied with; 0: not known.
    package var matrices = 0
    /// Of the linear layers.
    package var flops = 0.0
    package var bytes = 0.0
    package var seconds = 0.0
    /// Beside linear layers, selection and attention: norms, routing, gates, rotation, copies, writing to the cache.
    package var others = 0.0
    package init() {}
  }

  package var prefill = Phase()
  package var decode = Phase()
  /// Where the steps are from, for people; "": there are none.
  package var model = ""
  /// FLOP/s of register-only loops, and bytes/s of reads of memory.
  package var peaks: MachineProfile.Peaks
  package var memory: Double

  package init(peaks: MachineProfile.Peaks, memory: Double) {
    self.peaks = peaks
    self.memory = memory
  }

  package func profile(name: String, date: String, pricePerHour: Money?) throws(TamisError) -> MachineProfile {
    let lines = (prefill: try Lines(prefill), decode: try Lines(decode))
    let found = [lines.prefill, lines.decode]
    // A machine that others share can show less in the loops than the operators reached a moment later.
    let highest = MachineProfile.Peaks(
      eightBit: found.reduce(peaks.eightBit) { max($0, $1.index.rate) },
      sixteenBit: found.reduce(peaks.sixteenBit) {
        max($0, $1.dense.rate, $1.sparse.rate, $1.linear.rate, $1.expanded?.rate ?? 0)
      },
      float32: peaks.float32)
    let runs = prefill.all + decode.all
    let bandwidth = runs.reduce(memory) { max($0, $1.bytes / $1.seconds) }
    let spread = runs.reduce(0) { $0 + $1.spread } / Double(max(runs.count, 1))
    return try MachineProfile(
      name: name, source: "measured here with the operators of this library", date: date, basis: .calibrated,
      peaks: highest, memoryBytesPerSecond: bandwidth, prefill: lines.prefill.phase(highest),
      decode: lines.decode.phase(highest), pricePerHour: pricePerHour,
      trust: MachineProfile.Trust(
        low: 0.8, high: min(max(1.25, 1.25 * spread), 10), ratio: 0.2,
        note: "Rates and fixed times fitted to the best of several runs of one layer's operators; a mean run took "
          + "\((spread * 100).rounded() / 100) times as long. \(scope)"))
  }

  /// What is in the predictions, and what it rests on.
  private var scope: String {
    guard let steps = decode.steps ?? prefill.steps else {
      return "Attention and linear layers are predicted, norms, routing and sampling are not."
    }
    return "Linear layers, and norms, routing, gates and copies as a time for each layer, are those of steps of "
      + "\(model) (\(steps.layers) layers): a prompt of \(prefill.steps?.rows ?? 0) tokens and tokens behind it. "
      + "Sampling is not predicted."
  }
}

/// Seconds = fixed + FLOP / rate.
struct Line: Sendable {
  var fixed: Double
  var rate: Double

  /// The least squares of relative errors; through zero where the fixed part would be negative.
  init(_ runs: [Calibration.Run]) throws(TamisError) {
    guard !runs.isEmpty, runs.allSatisfy({ $0.flops > 0 && $0.seconds > 0 && $0.seconds.isFinite }) else {
      throw TamisError(.internal, "machine: nothing was measured, expected FLOP and time")
    }
    // a·x + b·y = 1 for every run, with x = 1 / seconds and y = FLOP / seconds.
    var (xx, xy, yy, x, y) = (0.0, 0.0, 0.0, 0.0, 0.0)
    for run in runs {
      let one = 1 / run.seconds
      let work = run.flops / run.seconds
      (xx, xy, yy) = (xx + one * one, xy + one * work, yy + work * work)
      (x, y) = (x + one, y + work)
    }
    let determinant = xx * yy - xy * xy
    fixed = (x * yy - y * xy) / determinant
    var slope = (y * xx - x * xy) / determinant
    if runs.count < 2 || !(determinant > 1e-9 * xx * yy) || !(fixed > 0) || !(slope > 0) {
      fixed = 0
      slope = y / yy
    }
    rate = 1 / slope
  }
}

extension Calibration.Steps {
  /// A row of its linear layers.
  fileprivate var run: Calibration.Run {
    Calibration.Run(
      flops: flops / Double(max(rows, 1)), bytes: 0, seconds: seconds / Double(max(rows, 1)), spread: 1)
  }

  fileprivate var othersPerRowAndLayer: Double { max(0, others) / Double(max(rows, 1)) / Double(max(layers, 1)) }
}

extension Line {
  /// As many times slower or faster as the weights of a model's own step were than the line says.
  fileprivate func scaled(to steps: Calibration.Steps) -> Line {
    let expected = fixed * Double(steps.matrices) + steps.bytes / rate
    guard expected > 0, steps.seconds > 0, expected.isFinite else { return self }
    var line = self
    line.fixed *= steps.seconds / expected
    line.rate *= expected / steps.seconds
    return line
  }
}

private struct Lines {
  let index: Line
  let dense: Line
  let sparse: Line
  let linear: Line
  let expanded: Line?
  let weights: Line?
  let steps: Calibration.Steps?

  init(_ runs: Calibration.Phase) throws(TamisError) {
    index = try Line(runs.index)
    dense = try Line(runs.dense)
    sparse = try Line(runs.sparse)
    let memory = runs.weights.isEmpty ? nil : try Line(runs.weights)
    weights = memory.map { line in runs.steps.map { line.scaled(to: $0) } ?? line }
    // Few rows wait for weights, many compute.
    let computes = runs.weights.isEmpty ? runs.steps : nil
    linear = try Line(computes.map { [$0.run] } ?? runs.linear)
    expanded = runs.expanded.isEmpty ? nil : try Line(runs.expanded)
    steps = runs.steps
  }

  func phase(_ peaks: MachineProfile.Peaks) -> MachineProfile.Phase {
    let share = { (precision: Precision, line: Line) in
      MachineProfile.Rate(precision, min(max(line.rate / peaks[precision], 1e-6), 1))
    }
    return MachineProfile.Phase(
      linear: share(.sixteenBit, linear), indexer: share(.eightBit, index), dense: share(.sixteenBit, dense),
      masked: nil, sparse: share(.sixteenBit, sparse), expanded: expanded.map { share(.sixteenBit, $0) },
      linearBytesPerSecond: weights?.rate ?? 0, secondsPerMatrix: weights?.fixed ?? 0, overhead: 0,
      overheadPerLayer: dense.fixed + (steps?.othersPerRowAndLayer ?? 0),
      sparseOverheadPerLayer: max(0, index.fixed + sparse.fixed - dense.fixed),
      expandedOverheadPerLayer: expanded.map { $0.fixed - dense.fixed } ?? 0)
  }
}
