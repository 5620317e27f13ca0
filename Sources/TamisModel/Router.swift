// The router of a mixture of experts (DeepSeek-V3, section 2.1.2): sigmoid scores; a bias that takes part in the
// choice and not in the weights; the best groups by the sum of their two best experts, all other experts masked with
// -infinity (a masked expert must lose against a negative one); equal scores: the lower number.

struct Router {
  let experts: ModelConfig.Experts

  /// logits [routed] become sigmoid scores. chosen and weights [perToken], in ascending order of the expert.
  /// scratch [routed + groups]
  func choose(
    _ logits: UnsafeMutablePointer<Float>, bias: UnsafePointer<Float>, scratch: UnsafeMutablePointer<Float>,
    chosen: UnsafeMutablePointer<Int32>, weights: UnsafeMutablePointer<Float>
  ) {
    let count = experts.routed
    let choice = scratch
    for e in 0..<count {
      logits[e] = sigmoid(logits[e])
      choice[e] = logits[e] + bias[e]
    }
    if experts.groups > 1 { maskGroups(choice, scores: scratch + count) }
    for slot in 0..<experts.perToken {
      let best = Router.takeBest(choice, count)
      chosen[slot] = Int32(truncatingIfNeeded: best)
    }
    sort(chosen)
    var sum: Float = 1e-20
    for slot in 0..<experts.perToken { sum += logits[Int(chosen[slot])] }
    let factor = experts.normalises ? experts.scale / sum : experts.scale
    for slot in 0..<experts.perToken { weights[slot] = logits[Int(chosen[slot])] * factor }
  }

  private func maskGroups(_ choice: UnsafeMutablePointer<Float>, scores: UnsafeMutablePointer<Float>) {
    let size = experts.routed / experts.groups
    for group in 0..<experts.groups {
      var (first, second) = (-Float.infinity, -Float.infinity)
      for e in group &* size..<(group &+ 1) &* size {
        if choice[e] > first {
          (first, second) = (choice[e], first)
        } else {
          second = max(second, choice[e])
        }
      }
      scores[group] = size > 1 ? first + second : first
    }
    // A group that is taken is marked by NaN, which no group's sum of sigmoids is.
    for _ in 0..<experts.groupsPerToken {
      scores[Router.best(scores, experts.groups)] = .nan
    }
    for group in 0..<experts.groups where !scores[group].isNaN {
      (choice + group &* size).update(repeating: -.infinity, count: size)
    }
  }

  private static func best(_ values: UnsafeMutablePointer<Float>, _ count: Int) -> Int {
    var best = 0
    for i in 1..<max(count, 1) where values[i] > values[best] || values[best].isNaN { best = i }
    return best
  }

  private static func takeBest(_ values: UnsafeMutablePointer<Float>, _ count: Int) -> Int {
    let best = best(values, count)
    values[best] = .nan
    return best
  }

  /// Few elements.
  private func sort(_ chosen: UnsafeMutablePointer<Int32>) {
    for i in 1..<max(experts.perToken, 1) {
      var at = i
      while at > 0, chosen[at] < chosen[at &- 1] {
        (chosen[at], chosen[at &- 1]) = (chosen[at &- 1], chosen[at])
        at &-= 1
      }
    }
  }
}
