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
    case .dense: [dense(phase, base(phase))]
    case .sparse: scored(phase)
    case .automatic: scored(phase) + [unscored(phase)]
    }
  }

  private func scored(_ phase: PhaseKind) -> [Way] {
    let start = sum(sparseBase(phase), indexer(phase))
    let gather = Way(
      path: .sparse, seconds: sparse(phase).seconds, flops: sparse(phase).flops, bytes: sparse(phase).bytes)
    guard let masked = rates(phase).masked else { return [sum(start, gather)] }
    return [sum(start, gather), sum(start, core(.masked, masked, phase))]
  }

  private func unscored(_ phase: PhaseKind) -> Way {
    var way = dense(phase, sparseBase(phase))
    way.mostKeys = architecture.indexer.topK
    return way
  }

  private func dense(_ phase: PhaseKind, _ base: Way) -> Way {
    sum(base, core(.dense, rates(phase).dense, phase))
  }

  /// The linear layers and what a token costs anyway.
  private func base(_ phase: PhaseKind) -> Way {
    let shared = phase == .decode ? batch : chunk
    let flops = architecture.linearFlopsPerToken
    let bytes = architecture.weightBytes / Double(shared)
    let overhead = rates(phase).overhead + rates(phase).overheadPerLayer * Double(architecture.layers)
    let seconds = time(flops, bytes, rates(phase).linear) + overhead
    return Way(path: .dense, seconds: Ramp(fixed: seconds), flops: Ramp(fixed: flops), bytes: Ramp(fixed: bytes))
  }

  private func sparseBase(_ phase: PhaseKind) -> Way {
    var way = base(phase)
    way.path = .sparse
    way.seconds.fixed += rates(phase).sparseOverheadPerLayer * Double(architecture.layers)
    return way
  }

  private func indexer(_ phase: PhaseKind) -> Way {
    let bytes = architecture.indexBytesPerToken / readers(phase)
    return perKey(.sparse, architecture.indexFlopsPerPair, bytes, rates(phase).indexer)
  }

  /// Attention over every key: expanded in prefill, absorbed in decode.
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
      path: path, seconds: Ramp(perKey: time(flops, bytes, rate)), flops: Ramp(perKey: flops),
      bytes: Ramp(perKey: bytes))
  }

  /// A part takes as long as its arithmetic or its memory traffic, whichever is longer.
  private func time(_ flops: Double, _ bytes: Double, _ rate: MachineProfile.Rate) -> Double {
    let compute = flops / machine.flopsPerSecond(rate)
    guard machine.memoryBytesPerSecond > 0 else { return compute }
    return max(compute, bytes / machine.memoryBytesPerSecond)
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
