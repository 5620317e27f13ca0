// The second half of a layer: a gated network, or a mixture of them. All experts of a step are one region of parallel
// work, so that a decode step waits for its threads a few times a layer and not a few times an expert.

import TamisOperators
import TamisRuntime

extension Step {
  /// space.normed -> space.added
  func feedForward(_ weights: FeedForwardWeights) throws(TamisError) {
    switch weights {
    case .dense(let weights):
      let width = config.intermediate
      try project([(space.normed, weights.gate, space.gate), (space.normed, weights.up, space.up)])
      forRows { row in gate(row &* width, width) }
      try project([(space.gate, weights.down, space.added)])
    case .mixture(let weights):
      if let experts = config.experts { try mixture(weights, experts) }
    }
  }

  /// The choices of a row, in ascending order of the expert.
  private func places(_ row: Int, _ experts: ModelConfig.Experts) -> Range<Int> {
    Range(uncheckedBounds: (row &* experts.perToken, (row &+ 1) &* experts.perToken))
  }

  /// gate = silu(gate) * up
  private func gate(_ first: Int, _ width: Int) {
    for i in Range(uncheckedBounds: (first, first &+ width)) {
      let gate = space.gate[i]
      space.gate[i] = gate * sigmoid(gate) * space.up[i]
    }
  }

  /// The memory of gate and up: rows of the shared expert, then a row for each slot. Slots are (row, chosen expert),
  /// in ascending order of the expert and then of the row.
  private func mixture(_ weights: MixtureWeights, _ experts: ModelConfig.Experts) throws(TamisError) {
    var first: [(x: Floats, weight: Tensor, y: Floats)] = [(space.normed, weights.router, space.logits)]
    if let shared = weights.shared {
      first += [(space.normed, shared.gate, space.gate), (space.normed, shared.up, space.up)]
    }
    try project(first)
    let router = Router(experts: experts)
    let scratch = space.logits + space.rows &* experts.routed
    forRows { row in
      router.choose(
        space.logits + row &* experts.routed, bias: weights.bias,
        scratch: scratch + row &* (experts.routed &+ experts.groups),
        chosen: space.chosen + row &* experts.perToken, weights: space.weights + row &* experts.perToken)
    }
    let ends = fillSlots(experts)
    try runExperts(weights, experts, ends)
    forRows { row in sum(row, experts, hasShared: weights.shared != nil) }
  }

  /// Gives every (row, chosen expert) its slot; returns the slot behind each expert's last.
  private func fillSlots(_ experts: ModelConfig.Experts) -> [Int] {
    let places = Range(uncheckedBounds: (0, rows &* experts.perToken))
    var ends = Array(repeating: 0, count: experts.routed)
    ends.withUnsafeMutableBufferPointer { ends in
      for place in places { ends[Int(space.chosen[place])] &+= 1 }
      var begin = 0
      for expert in ends.indices {
        let count = ends[expert]
        ends[expert] = begin
        begin &+= count
      }
      for place in places {
        let expert = Int(space.chosen[place])
        space.slots[place] = Int32(truncatingIfNeeded: ends[expert])
        ends[expert] &+= 1
      }
    }
    return ends
  }

  private func runExperts(
    _ weights: MixtureWeights, _ experts: ModelConfig.Experts, _ ends: [Int]
  ) throws(TamisError) {
    let (hidden, width) = (config.hidden, experts.intermediate)
    forRows { row in
      for place in places(row, experts) {
        (space.gathered + Int(space.slots[place]) &* hidden).update(from: space.normed + row &* hidden, count: hidden)
      }
    }
    let routed = rows &* experts.sharedIntermediate
    var inner: [Product] = []
    var outer: [Product] = []
    if let shared = weights.shared { outer.append(try product(space.gate, shared.down, space.added, rows: rows)) }
    var begin = 0
    for (expert, end) in zip(weights.experts, ends) where end > begin {
      let x = space.gathered + begin &* hidden
      let at = routed &+ begin &* width
      inner.append(try product(x, expert.gate, space.gate + at, rows: end &- begin))
      inner.append(try product(x, expert.up, space.up + at, rows: end &- begin))
      outer.append(try product(space.gate + at, expert.down, space.expertOut + begin &* hidden, rows: end &- begin))
      begin = end
    }
    try Project.run(context, inner)
    forRows { row in
      gate(row &* experts.sharedIntermediate, experts.sharedIntermediate)
      for place in places(row, experts) {
        gate(routed &+ Int(space.slots[place]) &* width, width)
      }
    }
    try Project.run(context, outer)
  }

  /// The shared expert and then each routed one in ascending order, so a row's bits do not depend on its neighbours.
  private func sum(_ row: Int, _ experts: ModelConfig.Experts, hasShared: Bool) {
    let width = config.hidden
    let to = space.added + row &* width
    if !hasShared { to.update(repeating: 0, count: width) }
    for place in places(row, experts) {
      let weight = space.weights[place]
      let from = space.expertOut + Int(space.slots[place]) &* width
      for column in Range(uncheckedBounds: (0, width)) { to[column] += weight * from[column] }
    }
  }
}
