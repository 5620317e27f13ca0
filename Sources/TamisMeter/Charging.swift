// How the calls of a thread reach a meter: the operators tell a recorder what they did, the recorder makes a record of
// it with its dense counterfactual, and charges it. A call that could not be charged (a counter is full) is not. Energy
// is that of the whole machine, so it is read only while no other meter reads it.

package import TamisRuntime

extension Meter {
  /// Names this meter among the recorders of a thread.
  private var identity: UInt { UInt(bitPattern: Unmanaged.passUnretained(self).toOpaque()) }

  /// Keeps the meter alive and charges it.
  package var recorder: Recorder {
    Recorder(identity: identity) { operation, sample in
      try? self.charge(Cost(operation, sample, on: self.machine))
    }
  }

  /// The meter that a recorder made here keeps alive.
  package static func behind(_ recorder: Recorder) -> Meter? {
    UnsafeRawPointer(bitPattern: recorder.identity).map { Unmanaged<Meter>.fromOpaque($0).takeUnretainedValue() }
  }

  package func enter() throws(TamisError) {
    try recorder.enter()
    if readsEnergy { Meter.energy.withLock { $0.enter() } }
  }

  /// The meter that the calling thread entered last.
  package static var innermost: Meter? { Recorder.current.flatMap(behind) }

  package func leave() throws(TamisError) {
    try Recorder.leave(identity: identity)
    guard readsEnergy else { return }
    var cost = Cost()
    cost.setEnergy(microjoules: Meter.energy.withLock { $0.leave() })
    try charge(cost)
  }

  private static let energy = Guarded(SharedEnergy())
}

extension Cost {
  /// The record of one call. What a dense attention has in common with it took it the time that was measured; the
  /// indexer it does not have; only its attention over all keys must be estimated, by the machine's rates. The expanded
  /// form goes over all of them anyway, and masks.
  package init(_ operation: Operator, _ sample: Sample, on machine: MachineProfile?) {
    self.init(sample)
    // The indexer's operators count what they might see, too; what attention would have compared counts once.
    if operation != .attend { keysDense = 0 }
    switch operation {
    case .index, .topk, .select: setDenseTime(nanoseconds: 0, basis: .measured)
    case .attend where sample.keysAttended != sample.keysDense && sample.keysExpanded != sample.keysDense:
      // Many rows at once are a prefill; a few are sequences that decode together.
      if let machine { estimateDenseTime(sample.queries < 16 ? .decode : .prefill, on: machine) }
    case .attend, .quantize, .dequantize, .merge, .project, .cache:
      setDenseTime(nanoseconds: sample.wallNanoseconds, basis: .measured)
    }
  }
}

/// The machine's energy counters and how many meters look at them.
private struct SharedEnergy: Sendable {
  private var counters: EnergyMeter?
  private var inside = 0
  private var disturbed = false

  mutating func enter() {
    inside &+= 1
    guard inside == 1 else {
      disturbed = true
      return
    }
    disturbed = false
    var counters = self.counters ?? EnergyMeter()
    _ = counters.read(now: Clock.wall())
    self.counters = counters
  }

  /// Microjoules since `enter`; nil where another meter was inside meanwhile, or the counters did not answer.
  mutating func leave() -> UInt64? {
    inside &-= 1
    guard !disturbed, var counters else { return nil }
    let used = counters.read(now: Clock.wall())
    self.counters = counters
    return used
  }
}
