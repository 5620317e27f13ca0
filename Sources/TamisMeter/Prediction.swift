// What work will cost before it is done: seconds, FLOP and bytes of a position or of a whole request on a machine,
// dense, sparse or automatic, with low and high figures, and the context from which on sparse attention pays.
// Everything is a closed form over the positions; nothing is predicted without saying on what basis.

package import TamisRuntime

package enum Mode: Sendable, CaseIterable {
  /// Full attention and no indexer: the model that DSA replaces.
  case dense
  /// DSA as published: every visible key is scored at every position.
  case sparse
  /// DSA by its cheapest exact path: while nothing can be left out (keys ≤ top-k) no key is scored.
  case automatic
}

package enum PhaseKind: Sendable { case prefill, decode }

/// One request. `input` includes `cached`, as providers bill it.
package struct Request: Sendable, Equatable {
  package let input: Int
  package let cached: Int
  package let output: Int
  /// Sequences that share one read of the weights while decoding.
  package let batch: Int
  /// Tokens that share one read of weights and keys during prefill.
  package let chunk: Int

  package init(input: Int, cached: Int = 0, output: Int, batch: Int = 1, chunk: Int = 512) throws(TamisError) {
    guard input >= 0, output >= 0, input <= Curve.mostKeys / 2, output <= Curve.mostKeys / 2 else {
      throw TamisError(
        .argument, "request: input or output tokens are out of range, expected 0 to \(Curve.mostKeys / 2)")
    }
    guard cached >= 0, cached <= input else {
      throw TamisError(
        .argument, "request: \(cached) cached tokens, expected 0 to the \(input) input tokens that include them")
    }
    guard batch > 0, chunk > 0 else {
      throw TamisError(.argument, "request: batch and chunk must be at least 1")
    }
    self.input = input
    self.cached = cached
    self.output = output
    self.batch = batch
    self.chunk = chunk
  }
}

/// A figure with its uncertainty.
package struct Interval: Sendable, Equatable {
  package var low: Double
  package var mid: Double
  package var high: Double
}

package struct Estimate: Sendable, Equatable {
  package var prefill: Work
  package var decode: Work
  package var seconds: Interval
  package var basis: Basis
  package var total: Work { prefill + decode }
}

package struct Predictor: Sendable {
  package let architecture: Architecture
  package let machine: MachineProfile
  package let batch: Int
  package let chunk: Int

  package init(_ architecture: Architecture, on machine: MachineProfile, batch: Int = 1, chunk: Int = 512) {
    self.architecture = architecture
    self.machine = machine
    self.batch = max(batch, 1)
    self.chunk = max(chunk, 1)
  }

  /// One token that sees `keys` keys.
  package func estimate(at keys: Int, _ phase: PhaseKind, _ mode: Mode) throws(TamisError) -> Estimate {
    guard keys >= 0, keys <= Curve.mostKeys else {
      throw TamisError(.argument, "predict: a context of \(keys), expected 0 to \(Curve.mostKeys)")
    }
    let work = curve(phase, mode).work(at: keys)
    return phase == .prefill ? estimate(prefill: work, decode: Work()) : estimate(prefill: Work(), decode: work)
  }

  /// A whole request: input after the cached prefix is prefilled, output is decoded, each token sees itself.
  package func estimate(_ request: Request, _ mode: Mode) -> Estimate {
    let own = Predictor(architecture, on: machine, batch: request.batch, chunk: request.chunk)
    let end = request.input &+ request.output
    return own.estimate(
      prefill: own.curve(.prefill, mode).work(over: request.cached &+ 1..<request.input &+ 1),
      decode: own.curve(.decode, mode).work(over: request.input &+ 1..<end &+ 1))
  }

  private func estimate(prefill: Work, decode: Work) -> Estimate {
    let mid = prefill.seconds + decode.seconds
    let trust = machine.trust
    return Estimate(
      prefill: prefill, decode: decode, seconds: Interval(low: mid * trust.low, mid: mid, high: mid * trust.high),
      basis: machine.basis)
  }
}

// MARK: From architecture and machine to curves

extension Predictor {
  package func curve(_ phase: PhaseKind, _ mode: Mode) -> Curve {
    Curve(ways: ways(phase, mode), cap: architecture.indexer.topK)
  }

  private func ways(_ phase: PhaseKind, _ mode: Mode) -> [Way] {
    switch mode {
    case .dense: unscored(phase)
    case .sparse: scored(phase)
    case .automatic:
      scored(phase)
        + unscored(phase, extra: rates(phase).sparseOverheadPerLayer).map { way in
          var way = way
          way.mostKeys = architecture.indexer.topK
          return way
        }
    }
  }

  private func scored(_ phase: PhaseKind) -> [Way] {
    let rates = rates(phase)
    let scoring = { (expands: Bool) -> Way in
      sum(base(phase, scores: true, expands: expands, extra: rates.sparseOverheadPerLayer), indexer(phase))
    }
    var ways = [sum(scoring(false), sparse(phase))]
    if let masked = rates.masked { ways.append(sum(scoring(false), core(.masked, masked, phase))) }
    if let expanded = rates.expanded { ways.append(sum(scoring(true), self.expanded(.masked, expanded, phase))) }
    return ways
  }

  /// extra: seconds for each layer.
  private func unscored(_ phase: PhaseKind, extra: Double = 0) -> [Way] {
    let rates = rates(phase)
    let start = { (expands: Bool) -> Way in base(phase, scores: false, expands: expands, extra: extra) }
    guard let expanded = rates.expanded else { return [sum(start(false), core(.dense, rates.dense, phase))] }
    let absorbed = perKey(
      .dense, architecture.absorbedFlopsPerPair, architecture.cacheBytesPerToken / readers(phase), rates.dense)
    return [sum(start(false), absorbed), sum(start(true), self.expanded(.dense, expanded, phase))]
  }

  /// The linear layers and what a token costs anyway. scores: with the indexer's projections. expands: without the
  /// products with W_UK and W_UV, which expanded attention makes for the keys instead. extra: seconds for each layer.
  private func base(_ phase: PhaseKind, scores: Bool, expands: Bool, extra: Double) -> Way {
    let rates = rates(phase)
    let shared = Double(phase == .decode ? batch : chunk)
    let head = phase == .decode ? 0 : 2 * architecture.headParameters
    let index = scores ? architecture.indexProjectionFlopsPerToken : 0
    let flops = max(
      0, architecture.linearFlopsPerToken - head - (expands ? architecture.expansionFlops : 0)) + index
    let bytes = (architecture.weightBytes + (scores ? architecture.indexProjectionBytes : 0)) / shared
    let bandwidth = rates.linearBytesPerSecond > 0 ? rates.linearBytesPerSecond : machine.memoryBytesPerSecond
    let seconds =
      time(flops, bytes, rates.linear, bandwidth) + rates.secondsPerMatrix * Double(architecture.matrices) / shared
      + rates.overhead
      + (rates.overheadPerLayer + extra + (expands ? rates.expandedOverheadPerLayer : 0)) * Double(architecture.layers)
    return Way(
      path: scores ? .sparse : .dense, seconds: Ramp(fixed: seconds), flops: Ramp(fixed: flops),
      bytes: Ramp(fixed: bytes))
  }

  private func indexer(_ phase: PhaseKind) -> Way {
    let bytes = architecture.indexBytesPerToken / readers(phase)
    return perKey(.sparse, architecture.indexFlopsPerPair, bytes, rates(phase).indexer)
  }

  /// Attention over every key in the expanded form, with this row's share of making the keys and values of each. A chunk
  /// makes those that its last row sees, which are half a chunk more than its mean row's.
  private func expanded(_ path: Path, _ rate: MachineProfile.Rate, _ phase: PhaseKind) -> Way {
    let flops = architecture.expandedFlopsPerPair + architecture.expansionFlops / readers(phase)
    var way = perKey(path, flops, architecture.cacheBytesPerToken / readers(phase), rate)
    way.flops.fixed = architecture.expansionFlops / 2
    way.seconds.fixed = way.flops.fixed / machine.flopsPerSecond(rate)
    return way
  }

  /// Attention over every key where the profile knows one form: expanded in prefill, absorbed in decode.
  private func core(_ path: Path, _ rate: MachineProfile.Rate, _ phase: PhaseKind) -> Way {
    let flops = phase == .prefill ? architecture.expandedFlopsPerPair : architecture.absorbedFlopsPerPair
    return perKey(path, flops, architecture.cacheBytesPerToken / readers(phase), rate)
  }

  /// Attention over the selected keys, absorbed; each query gathers its own, so no read is shared.
  private func sparse(_ phase: PhaseKind) -> Way {
    let all = perKey(.sparse, architecture.absorbedFlopsPerPair, architecture.cacheBytesPerToken, rates(phase).sparse)
    return Way(
      path: .sparse, seconds: Ramp(perSelected: all.seconds.perKey), flops: Ramp(perSelected: all.flops.perKey),
      bytes: Ramp(perSelected: all.bytes.perKey))
  }

  private func perKey(_ path: Path, _ flops: Double, _ bytes: Double, _ rate: MachineProfile.Rate) -> Way {
    Way(
      path: path, seconds: Ramp(perKey: time(flops, bytes, rate, machine.memoryBytesPerSecond)), flops: Ramp(perKey: flops),
      bytes: Ramp(perKey: bytes))
  }

  /// A part takes as long as its arithmetic or its memory traffic, whichever is longer.
  private func time(
    _ flops: Double, _ bytes: Double, _ rate: MachineProfile.Rate, _ bandwidth: Double
  ) -> Double {
    let compute = flops / machine.flopsPerSecond(rate)
    return bandwidth > 0 ? max(compute, bytes / bandwidth) : compute
  }

  private func readers(_ phase: PhaseKind) -> Double { phase == .prefill ? Double(chunk) : 1 }

  private func rates(_ phase: PhaseKind) -> MachineProfile.Phase {
    phase == .prefill ? machine.prefill : machine.decode
  }

  private func sum(_ left: Way, _ right: Way) -> Way {
    Way(
      path: right.path, seconds: left.seconds + right.seconds, flops: left.flops + right.flops,
      bytes: left.bytes + right.bytes)
  }
}
