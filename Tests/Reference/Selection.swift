// Index and select: the lightning indexer's score of every key, and the set of the k best keys of each query.
// Plain loops over whole score matrices: the engine never stores them, the specification does. Scores are
// computed in Double from the numbers given (after any quantisation); it refuses to quantise by itself.

/// How many keys each of `queries` rows sees when the rows are the last ones of a sequence of `keys` tokens
/// (causal, aligned bottom right): row i sees keys - queries + i + 1, never fewer than none.
public func causalVisible(queries: Int, keys: Int) -> [Int] {
  (0..<queries).map { max(0, keys - queries + $0 + 1) }
}

/// The factor of each head in the index score (DeepSeek-V3.2-Exp inference/model.py, Indexer.forward):
///
///     w_th = weight_th * heads^-1/2 * queryScale_th * dim^-1/2
///
/// weights, queryScales [queries, heads]. There is no activation: a weight may be negative.
public func foldedHeadWeights(_ weights: [Double], queryScales: [Double], heads: Int, dim: Int) -> [Double] {
  let constant = 1 / (Double(heads).squareRoot() * Double(dim).squareRoot())
  return zip(weights, queryScales).map { $0 * $1 * constant }
}

/// The index score of every (query, key) pair (DeepSeek-V3.2-Exp, equation 1):
///
///     I(t, s) = keyScale_s * sum_h w_th * max(0, q_th . k_s)
///
/// queries [n, heads, dim], weights [n, heads] with every constant and query scale folded in, keys [m, dim],
/// keyScales [m] (nil: 1). Gives [n, m], without any mask.
public func indexScores(
  queries: [Double], weights: [Double], keys: [Double], keyScales: [Double]? = nil, heads: Int, dim: Int
) -> [Double] {
  let queryCount = weights.count / heads
  let keyCount = keys.count / dim
  precondition(queries.count == queryCount * heads * dim && keys.count == keyCount * dim, "shapes agree")
  var scores: [Double] = []
  scores.reserveCapacity(queryCount * keyCount)
  for t in 0..<queryCount {
    for s in 0..<keyCount {
      var sum = 0.0
      for h in 0..<heads {
        let product = dot(queries, (t * heads + h) * dim, keys, s * dim, count: dim)
        sum += weights[t * heads + h] * rectified(product)
      }
      scores.append(sum * (keyScales?[s] ?? 1))
    }
  }
  return scores
}

/// Scores [n, keys] in which the keys that a row does not see are -infinity; visible [n], nil for causal bottom right.
public func maskUnseen(_ scores: [Double], keys: Int, visible: [Int]? = nil) -> [Double] {
  let visible = visible ?? causalVisible(queries: keys == 0 ? 0 : scores.count / keys, keys: keys)
  return scores.indices.map { $0 % keys < visible[$0 / keys] ? scores[$0] : -.infinity }
}

/// max(0, x), in which a NaN stays NaN.
func rectified(_ x: Double) -> Double { x < 0 ? 0 : x }

/// The `k` best of the first `visible` scores: score descending, ties to the lower index, NaN ranking as
/// -infinity. Gives k entries: min(k, visible) indices in ascending order, then -1.
public func topK(_ scores: [Double], k: Int, visible: Int? = nil) -> [Int] {
  let count = min(max(visible ?? scores.count, 0), scores.count)
  let rank = scores[..<count].map { $0.isNaN ? -Double.infinity : $0 }
  let best = rank.indices.sorted { rank[$0] != rank[$1] ? rank[$0] > rank[$1] : $0 < $1 }.prefix(k)
  return best.sorted() + Array(repeating: -1, count: k - best.count)
}

/// Index and select in one: for each query the `k` best of the keys it sees.
///
/// Shapes as in `indexScores`; visible [n], nil for causal bottom right. Gives [n, k] key indices, ascending in
/// each row, -1 padded.
public func selectKeys(
  queries: [Double], weights: [Double], keys: [Double], keyScales: [Double]? = nil, heads: Int, dim: Int,
  k: Int, visible: [Int]? = nil
) -> [Int] {
  let scores = indexScores(
    queries: queries, weights: weights, keys: keys, keyScales: keyScales, heads: heads, dim: dim)
  return selectRows(scores, keys: keys.count / dim, k: k, visible: visible)
}

/// `topK` of each row of a score matrix [n, keys]; visible [n], nil for causal bottom right. Gives [n, k].
public func selectRows(_ scores: [Double], keys: Int, k: Int, visible: [Int]? = nil) -> [Int] {
  let queryCount = keys == 0 ? visible?.count ?? 0 : scores.count / keys
  let visible = visible ?? causalVisible(queries: queryCount, keys: keys)
  return (0..<queryCount).flatMap { t in
    topK(Array(scores[t * keys..<(t + 1) * keys]), k: k, visible: visible[t])
  }
}

/// sum_i a[aStart + i] * b[bStart + i], in order.
func dot(_ a: [Double], _ aStart: Int, _ b: [Double], _ bStart: Int, count: Int) -> Double {
  var sum = 0.0
  for i in 0..<count { sum += a[aStart + i] * b[bStart + i] }
  return sum
}
