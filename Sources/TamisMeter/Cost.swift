// The record of what was done: exact counts that only grow, the dense counterfactual of the same calls, time, energy.
// Reading twice and subtracting is the whole protocol. FLOP and bytes are 128-bit (64 bits are 213 days of 1 TFLOP/s),
// and no sum wraps: what does not fit is refused. Time is in whole nanoseconds and energy in whole microjoules, so
// that sums do not depend on their order.

package import TamisRuntime

package struct Cost: Sendable, Equatable {
  package var calls: UInt64 = 0
  package var queries: UInt64 = 0
  package var keysScored: UInt64 = 0
  package var keysSelected: UInt64 = 0
  package var keysAttended: UInt64 = 0
  /// Comparisons a dense attention would have made.
  package var keysDense: UInt64 = 0
  /// Of those, what the expanded form of attention computed, masked ones included.
  package var keysExpanded: UInt64 = 0
  /// Includes `cachedTokens`.
  package var inputTokens: UInt64 = 0
  package var cachedTokens: UInt64 = 0
  /// Tokens that a provider wrote to its cache; part of `inputTokens`.
  package var cacheWriteTokens: UInt64 = 0
  /// Tokens times seconds that a provider kept them.
  package var cacheTokenSeconds: UInt64 = 0
  package var outputTokens: UInt64 = 0
  package var flops: UInt128 = 0
  package var bytes: UInt128 = 0
  package var nanoseconds: UInt64 = 0
  package var cpuNanoseconds: UInt64 = 0
  package var denseFlops: UInt128 = 0
  package var denseBytes: UInt128 = 0
  private var denseTime = DenseTime()
  private var energy = Energy()

  package init() {}

  /// What an operator counted. Its dense time is not known until `setDenseTime`.
  package init(_ sample: Sample) {
    calls = sample.calls
    queries = sample.queries
    keysScored = sample.keysScored
    keysSelected = sample.keysSelected
    keysAttended = sample.keysAttended
    keysDense = sample.keysDense
    keysExpanded = sample.keysExpanded
    flops = UInt128(sample.flops)
    bytes = UInt128(sample.bytes)
    nanoseconds = sample.wallNanoseconds
    cpuNanoseconds = sample.cpuNanoseconds
    denseFlops = UInt128(sample.denseFlops)
    denseBytes = UInt128(sample.denseBytes)
    denseTime.untimed = sample.calls
  }

  /// Comparisons that sparse attention did not make.
  package var keysAvoided: UInt64 { keysDense > keysAttended ? keysDense &- keysAttended : 0 }
}

// MARK: The dense counterfactual's time, and energy

extension Cost {
  /// How many calls' dense time rests on what; counts, so that a difference of two reads knows its own basis.
  fileprivate struct DenseTime: Sendable, Equatable {
    var nanoseconds: UInt64 = 0
    var untimed: UInt64 = 0
    var measured: UInt64 = 0
    var calibrated: UInt64 = 0
    var analytic: UInt64 = 0
  }

  fileprivate struct Energy: Sendable, Equatable {
    var microjoules: UInt64 = 0
    var readings: UInt64 = 0
    var gaps: UInt64 = 0
  }

  package mutating func setDenseTime(nanoseconds: UInt64, basis: Basis) {
    denseTime = DenseTime()
    denseTime.nanoseconds = nanoseconds
    switch basis {
    case .measured: denseTime.measured = max(calls, 1)
    case .calibrated: denseTime.calibrated = max(calls, 1)
    case .analytic: denseTime.analytic = max(calls, 1)
    }
  }

  /// No call of this record has a dense time.
  package mutating func setUntimed() {
    denseTime = DenseTime()
    denseTime.untimed = calls
  }

  /// The basis of `denseNanoseconds`: the weakest of its parts; nil where a part has none.
  package var basis: Basis? {
    if denseTime.untimed > 0 { return nil }
    if denseTime.analytic > 0 { return .analytic }
    if denseTime.calibrated > 0 { return .calibrated }
    return denseTime.measured > 0 ? .measured : nil
  }

  /// Time of the dense counterfactual; nil unless every part of it has a basis.
  package var denseNanoseconds: UInt64? { basis == nil ? nil : denseTime.nanoseconds }

  /// One reading of the machine's energy counter; nil: it could not be read, and the record says so.
  package mutating func setEnergy(microjoules: UInt64?) {
    energy = Energy(
      microjoules: microjoules ?? 0, readings: microjoules == nil ? 0 : 1, gaps: microjoules == nil ? 1 : 0)
  }

  /// nil: not measured, or not measured throughout.
  package var microjoules: UInt64? { energy.readings > 0 && energy.gaps == 0 ? energy.microjoules : nil }
}

// MARK: Sums and differences

extension Cost {
  package func adding(_ other: Cost) throws(TamisError) -> Cost {
    try combined(with: other, Sum())
  }

  /// What happened since `earlier`, a read of the same meter.
  package func subtracting(_ earlier: Cost) throws(TamisError) -> Cost {
    try combined(with: earlier, Difference())
  }

  /// The one list of the fields.
  private func combined(with other: Cost, _ rule: some Combination) throws(TamisError) -> Cost {
    var result = Cost()
    result.calls = try rule.apply(calls, other.calls)
    result.queries = try rule.apply(queries, other.queries)
    result.keysScored = try rule.apply(keysScored, other.keysScored)
    result.keysSelected = try rule.apply(keysSelected, other.keysSelected)
    result.keysAttended = try rule.apply(keysAttended, other.keysAttended)
    result.keysDense = try rule.apply(keysDense, other.keysDense)
    result.keysExpanded = try rule.apply(keysExpanded, other.keysExpanded)
    result.inputTokens = try rule.apply(inputTokens, other.inputTokens)
    result.cachedTokens = try rule.apply(cachedTokens, other.cachedTokens)
    result.cacheWriteTokens = try rule.apply(cacheWriteTokens, other.cacheWriteTokens)
    result.cacheTokenSeconds = try rule.apply(cacheTokenSeconds, other.cacheTokenSeconds)
    result.outputTokens = try rule.apply(outputTokens, other.outputTokens)
    result.flops = try rule.apply(flops, other.flops)
    result.bytes = try rule.apply(bytes, other.bytes)
    result.nanoseconds = try rule.apply(nanoseconds, other.nanoseconds)
    result.cpuNanoseconds = try rule.apply(cpuNanoseconds, other.cpuNanoseconds)
    result.denseFlops = try rule.apply(denseFlops, other.denseFlops)
    result.denseBytes = try rule.apply(denseBytes, other.denseBytes)
    result.denseTime.nanoseconds = try rule.apply(denseTime.nanoseconds, other.denseTime.nanoseconds)
    result.denseTime.untimed = try rule.apply(denseTime.untimed, other.denseTime.untimed)
    result.denseTime.measured = try rule.apply(denseTime.measured, other.denseTime.measured)
    result.denseTime.calibrated = try rule.apply(denseTime.calibrated, other.denseTime.calibrated)
    result.denseTime.analytic = try rule.apply(denseTime.analytic, other.denseTime.analytic)
    result.energy.microjoules = try rule.apply(energy.microjoules, other.energy.microjoules)
    result.energy.readings = try rule.apply(energy.readings, other.energy.readings)
    result.energy.gaps = try rule.apply(energy.gaps, other.energy.gaps)
    return result
  }
}

private protocol Combination {
  func apply<Count: FixedWidthInteger>(_ left: Count, _ right: Count) throws(TamisError) -> Count
}

private struct Sum: Combination {
  func apply<Count: FixedWidthInteger>(_ left: Count, _ right: Count) throws(TamisError) -> Count {
    let (sum, overflowed) = left.addingReportingOverflow(right)
    guard !overflowed else { throw TamisError(.full, "meter: a counter is full; nothing was charged") }
    return sum
  }
}

private struct Difference: Combination {
  func apply<Count: FixedWidthInteger>(_ left: Count, _ right: Count) throws(TamisError) -> Count {
    let (difference, overflowed) = left.subtractingReportingOverflow(right)
    guard !overflowed else {
      throw TamisError(.argument, "meter: a read minus a later one, expected minus an earlier one")
    }
    return difference
  }
}

// MARK: Prices

extension Cost {
  package func usage() throws(TamisError) -> Usage {
    try Usage(
      input: inputTokens, cached: cachedTokens, cacheWrite: cacheWriteTokens, output: outputTokens,
      cacheTokenHours: Decimal(cacheTokenSeconds).divided(by: Decimal(Int64(3600)), places: 12))
  }

  /// nil where energy was not measured.
  package func bill(_ price: EnergyPrice) throws(TamisError) -> Bill? {
    guard let microjoules else { return nil }
    return try price.bill(microjoules: microjoules)
  }
}
