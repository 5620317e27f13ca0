// The second half of a layer: a gated network, or a mixture of them.

import TamisOperators
import TamisRuntime

extension Step {
  /// space.normed -> space.added
  func feedForward(_ weights: FeedForwardWeights) throws(TamisError) {
    switch weights {
    case .dense(let weights): try gated(weights, space.normed, rows: rows, to: space.added)
    case .mixture(let weights): try mixture(weights)
    }
  }

  private func gated(_ weights: GatedWeights, _ x: Floats, rows: Int, to y: Floats) throws(TamisError) {
    try project(x, weights.gate, to: space.gate, rows: rows)
    try project(x, weights.up, to: space.up, rows: rows)
    let width = weights.gate.shape[0]
    context.parallel(count: rows, workers: min(rows, context.threads)) { row, _ in
      for i in row &* width..<(row &+ 1) &* width {
        let gate = space.gate[i]
        space.gate[i] = gate * sigmoid(gate) * space.up[i]
      }
    }
    try project(space.gate, weights.down, to: y, rows: rows)
  }

  /// The shared expert and then each routed one in ascending order, so a row's bits do not depend on its neighbours.
  private func mixture(_ weights: MixtureWeights) throws(TamisError) {
    guard let experts = config.experts else { return }
    if let shared = weights.shared {
      try gated(shared, space.normed, rows: rows, to: space.added)
    } else {
      space.added.update(repeating: 0, count: rows &* config.hidden)
    }
    try project(space.normed, weights.router, to: space.logits)
    let router = Router(experts: experts)
    let routerScratch = space.logits + space.rows &* experts.routed
    forRows { row in
      router.choose(
        space.logits + row &* experts.routed, bias: weights.bias,
        scratch: routerScratch + row &* (experts.routed &+ experts.groups),
        chosen: space.chosen + row &* experts.perToken, weights: space.weights + row &* experts.perToken)
    }
    for (number, expert) in weights.experts.enumerated() {
      try runExpert(expert, Int32(truncatingIfNeeded: number), experts.perToken)
    }
  }

  private func runExpert(_ weights: GatedWeights, _ number: Int32, _ perToken: Int) throws(TamisError) {
    let width = config.hidden
    let places = space.expertRows + space.rows
    var count = 0
    for row in 0..<rows {
      for place in row &* perToken..<(row &+ 1) &* perToken where space.chosen[place] == number {
        space.expertRows[count] = Int32(truncatingIfNeeded: row)
        places[count] = Int32(truncatingIfNeeded: place)
        (space.gathered + count &* width).update(from: space.normed + row &* width, count: width)
        count &+= 1
        break
      }
    }
    guard count > 0 else { return }
    try gated(weights, space.gathered, rows: count, to: space.expertOut)
    for i in 0..<count {
      let to = space.added + Int(space.expertRows[i]) &* width
      let weight = space.weights[Int(places[i])]
      for column in 0..<width { to[column] += weight * space.expertOut[i &* width &+ column] }
    }
  }
}
