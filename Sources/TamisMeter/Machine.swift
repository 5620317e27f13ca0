// What a machine can do, as a small profile: peak rates, the share of the peak each part of the work reaches, the
// bandwidth of memory, the time a token costs whatever its context, and how far to trust all of it. Profiles are
// measured here or taken from a publication; the profile says which, and a price for an hour may come with it.

package import TamisRuntime

/// How a number came to be. Ordered: a sum is as good as its weakest part.
package enum Basis: UInt32, Sendable, Comparable, CaseIterable {
  case measured = 1
  case calibrated = 2
  case analytic = 3

  package static func < (left: Basis, right: Basis) -> Bool { left.rawValue < right.rawValue }

  package var name: String {
    switch self {
    case .measured: "measured"
    case .calibrated: "calibrated"
    case .analytic: "analytic"
    }
  }
}

package enum Precision: String, Sendable, CaseIterable {
  case eightBit = "eight_bit"
  case sixteenBit = "sixteen_bit"
  case float32
}

package struct MachineProfile: Sendable, Equatable {
  package let name: String
  package let source: String
  package let date: String
  /// `.calibrated`: its rates were measured on it; `.analytic`: they were taken from elsewhere.
  package let basis: Basis
  /// FLOP/s by precision; 0: not known, and no part may use it.
  package let peaks: Peaks
  /// Bytes/s; 0: memory is not part of the profile and never limits.
  package let memoryBytesPerSecond: Double
  package let prefill: Phase
  package let decode: Phase
  package let pricePerHour: Money?
  package let trust: Trust

  package struct Peaks: Sendable, Equatable {
    package let eightBit: Double
    package let sixteenBit: Double
    package let float32: Double
    package init(eightBit: Double, sixteenBit: Double, float32: Double) {
      self.eightBit = eightBit
      self.sixteenBit = sixteenBit
      self.float32 = float32
    }
    package subscript(_ precision: Precision) -> Double {
      switch precision {
      case .eightBit: eightBit
      case .sixteenBit: sixteenBit
      case .float32: float32
      }
    }
  }

  /// The share of one peak that one part of the work reaches.
  package struct Rate: Sendable, Equatable {
    package let precision: Precision
    package let efficiency: Double
    package init(_ precision: Precision, _ efficiency: Double) {
      self.precision = precision
      self.efficiency = efficiency
    }

    /// What an operator reached in a measured run: calibration on this machine.
    package init(_ precision: Precision, measured sample: Sample, peaks: Peaks) throws(TamisError) {
      guard sample.flops > 0, sample.wallNanoseconds > 0, peaks[precision] > 0 else {
        throw TamisError(.argument, "machine: nothing was measured, expected FLOP, time and a peak rate")
      }
      self.init(precision, Double(sample.flops) / (Double(sample.wallNanoseconds) * 1e-9) / peaks[precision])
    }
  }

  package struct Phase: Sendable, Equatable {
    package let linear: Rate
    package let indexer: Rate
    package let dense: Rate
    /// Dense arithmetic behind the indexer's mask: exact DSA without a gather. nil: not done in this phase.
    package let masked: Rate?
    package let sparse: Rate
    /// Attention in the expanded form, masked or not, together with making keys and values; then `dense` is that of
    /// the absorbed one, and the cheaper one is taken. nil: not known; `dense` stands for the form usual in the phase.
    package let expanded: Rate?
    /// Bytes/s at which linear layers read their weights; 0: the memory's.
    package let linearBytesPerSecond: Double
    /// Seconds that a step takes for each matrix of weights beyond that.
    package let secondsPerMatrix: Double
    /// Seconds for each token beyond its arithmetic.
    package let overhead: Double
    /// Seconds for each token and layer that attention takes whatever it attends to.
    package let overheadPerLayer: Double
    /// Seconds for each token and layer that sparse attention adds before any key is scored.
    package let sparseOverheadPerLayer: Double
    /// Seconds for each token and layer that the expanded form adds; below 0: that it saves.
    package let expandedOverheadPerLayer: Double
    package init(
      linear: Rate, indexer: Rate, dense: Rate, masked: Rate?, sparse: Rate, expanded: Rate? = nil,
      linearBytesPerSecond: Double = 0, secondsPerMatrix: Double = 0, overhead: Double, overheadPerLayer: Double = 0,
      sparseOverheadPerLayer: Double, expandedOverheadPerLayer: Double = 0
    ) {
      self.linear = linear
      self.indexer = indexer
      self.dense = dense
      self.masked = masked
      self.sparse = sparse
      self.expanded = expanded
      self.linearBytesPerSecond = linearBytesPerSecond
      self.secondsPerMatrix = secondsPerMatrix
      self.overhead = overhead
      self.overheadPerLayer = overheadPerLayer
      self.sparseOverheadPerLayer = sparseOverheadPerLayer
      self.expandedOverheadPerLayer = expandedOverheadPerLayer
    }
  }

  /// Factors around the predicted seconds, and how far sparse may be off *against dense*.
  package struct Trust: Sendable, Equatable {
    package let low: Double
    package let high: Double
    package let ratio: Double
    package let note: String
    package init(low: Double, high: Double, ratio: Double, note: String) {
      self.low = low
      self.high = high
      self.ratio = ratio
      self.note = note
    }
  }

  package init(
    name: String, source: String, date: String, basis: Basis, peaks: Peaks, memoryBytesPerSecond: Double,
    prefill: Phase,
    decode: Phase, pricePerHour: Money?, trust: Trust
  ) throws(TamisError) {
    self.name = name
    self.source = source
    self.date = date
    self.basis = basis
    self.peaks = peaks
    self.memoryBytesPerSecond = memoryBytesPerSecond
    self.prefill = prefill
    self.decode = decode
    self.pricePerHour = pricePerHour
    self.trust = trust
    try validate()
  }

  package func flopsPerSecond(_ rate: Rate) -> Double { peaks[rate.precision] * rate.efficiency }
}

// MARK: The time a dense attention would have taken

extension Cost {
  /// Estimates the time of the dense counterfactual from its counts and this profile's rates.
  package mutating func estimateDenseTime(_ phase: PhaseKind, on machine: MachineProfile) {
    let rates = phase == .prefill ? machine.prefill : machine.decode
    let compute = Double(denseFlops) / machine.flopsPerSecond(rates.dense)
    let memory = machine.memoryBytesPerSecond > 0 ? Double(denseBytes) / machine.memoryBytesPerSecond : 0
    let nanoseconds = (max(compute, memory) * 1e9).rounded()
    setDenseTime(nanoseconds: UInt64(exactly: nanoseconds) ?? UInt64.max, basis: machine.basis)
  }
}

// MARK: What a profile may say

extension MachineProfile {
  private func validate() throws(TamisError) {
    guard basis != .measured else {
      throw TamisError(.argument, "machine: a profile predicts, expected the basis calibrated or analytic")
    }
    for precision in Precision.allCases {
      try MachineProfile.check(peaks[precision], "a peak rate", 0, 1e21)
    }
    try MachineProfile.check(memoryBytesPerSecond, "the memory bandwidth", 0, 1e18)
    try check(prefill)
    try check(decode)
    try MachineProfile.check(trust.low, "the low factor", 0.001, 1)
    try MachineProfile.check(trust.high, "the high factor", 1, 1000)
    try MachineProfile.check(trust.ratio, "the ratio's uncertainty", 0, 0.99)
    if let pricePerHour, pricePerHour.amount.isNegative {
      throw TamisError(.argument, "machine: a negative price")
    }
  }

  private func check(_ phase: Phase) throws(TamisError) {
    let (masked, expanded) = (phase.masked ?? phase.dense, phase.expanded ?? phase.dense)
    for rate in [phase.linear, phase.indexer, phase.dense, masked, phase.sparse, expanded] {
      try MachineProfile.check(rate.efficiency, "an efficiency", 1e-6, 1.5)
      guard peaks[rate.precision] >= 1 else {
        throw TamisError(.argument, "machine: a part uses a precision without a peak rate")
      }
    }
    try MachineProfile.check(phase.linearBytesPerSecond, "the bandwidth of linear layers", 0, 1e18)
    try MachineProfile.check(phase.secondsPerMatrix, "an overhead", 0, 3600)
    try MachineProfile.check(phase.overhead, "an overhead", 0, 3600)
    try MachineProfile.check(phase.overheadPerLayer, "an overhead", 0, 3600)
    try MachineProfile.check(phase.sparseOverheadPerLayer, "an overhead", 0, 3600)
    try MachineProfile.check(phase.expandedOverheadPerLayer, "an overhead", -phase.overheadPerLayer, 3600)
  }

  private static func check(_ value: Double, _ what: String, _ low: Double, _ high: Double) throws(TamisError) {
    guard value.isFinite, value >= low, value <= high else {
      throw TamisError(.argument, "machine: \(what) is \(value), expected \(low) to \(high)")
    }
  }
}

// MARK: Published machines

extension MachineProfile {
  /// NVIDIA H800 at 2 USD an hour as DeepSeek used it for Figure 3 of DeepSeek_V3_2.pdf. The shares of the peaks were
  /// read off the figure's four curves. The constant parts are the linear layers of DeepSeek-V3.2 (73.24 GFLOP at the
  /// 8-bit peak) in 95.17 µs (prefill) and 126.90 µs (decode) and, for the indexer, 14.83 and 44.44 µs over 61 layers,
  /// its projections included.
  package static func h800() throws(TamisError) -> MachineProfile {
    let eightBit = 1979e12
    let model = try Architecture.deepSeekV32()
    let linearFlops = model.linearFlopsPerToken
    let projections = model.indexProjectionFlopsPerToken / linearFlops
    return try MachineProfile(
      name: "H800", source: "DeepSeek_V3_2.pdf, Figure 3", date: "2025-09-29", basis: .analytic,
      peaks: Peaks(eightBit: eightBit, sixteenBit: 989.5e12, float32: 0), memoryBytesPerSecond: 0,
      prefill: Phase(
        linear: Rate(.eightBit, linearFlops / (95.17e-6 * eightBit)), indexer: Rate(.eightBit, 0.4),
        dense: Rate(.sixteenBit, 0.6), masked: Rate(.sixteenBit, 0.55), sparse: Rate(.sixteenBit, 0.5734), overhead: 0,
        sparseOverheadPerLayer: (14.83e-6 - projections * 95.17e-6) / 61),
      decode: Phase(
        linear: Rate(.eightBit, linearFlops / (126.90e-6 * eightBit)), indexer: Rate(.eightBit, 0.35),
        dense: Rate(.sixteenBit, 0.6), masked: nil, sparse: Rate(.sixteenBit, 0.4), overhead: 0,
        sparseOverheadPerLayer: (44.44e-6 - projections * 126.90e-6) / 61),
      pricePerHour: Money(Decimal(Int64(2)), .usd),
      trust: Trust(
        low: 1, high: 2.1, ratio: 0.032,
        note: "DeepSeek's own fleet of 2025 was 2.0 to 2.1 times dearer than its figure at the same mean context; the "
          + "figure has no memory limit (with every sequence at 128K decode is 5.3, not 8.6, times cheaper sparse); "
          + "other engines were 2 to 3 times slower than dense on short prefill."))
  }
}
