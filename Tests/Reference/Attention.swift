// Attend and merge: softmax attention over all visible keys or over listed keys only. One function covers
// MLA (one key head whose value is the first dimensions of the key), GQA and MQA (a head shares its key head
// with its neighbours) and ordinary attention. It refuses masks other than a visible count or a list.

#if canImport(Darwin)
  import Darwin
#elseif canImport(Musl)
  import Musl
#else
  import Glibc
#endif

/// Sizes of one attention. `heads` is a multiple of `keyHeads`; query head h uses key head h / (heads / keyHeads).
public struct AttentionShape: Sendable {
  public let queries, keys, heads, keyHeads, keyDim, valueDim: Int

  public init(queries: Int, keys: Int, heads: Int, keyHeads: Int = 1, keyDim: Int, valueDim: Int) {
    precondition(keyHeads > 0 && heads.isMultiple(of: keyHeads), "heads share key heads evenly")
    (self.queries, self.keys, self.heads) = (queries, keys, heads)
    (self.keyHeads, self.keyDim, self.valueDim) = (keyHeads, keyDim, valueDim)
  }
}

/// out [queries, heads, valueDim] and the natural logarithm of the softmax denominator, lse [queries, heads].
public struct Attended: Sendable {
  public var out: [Double]
  public var lse: [Double]

  public init(out: [Double], lse: [Double]) { (self.out, self.lse) = (out, lse) }
}

/// Softmax attention of every query head over the keys its row attends to:
///
///     z_s = scale * q_th . k_s;   lse_th = ln(sum_s exp z_s + exp sink_h);   out_th = sum_s exp(z_s - lse_th) v_s
///
/// queries [n, heads, keyDim], keys [m, keyHeads, keyDim], values [m, keyHeads, valueDim] or nil: the first
/// valueDim dimensions of the key (MLA). The keys of row t are
/// - with `indices` [n, k]: those listed; negative entries are skipped, and nothing else is masked;
/// - otherwise keys 0 ..< visible[t], nil for causal bottom right.
///
/// `sink` [heads] is a logit without a value: it joins the denominator only (nil: no such term). It is part of the lse,
/// so of two partial results that are merged exactly one has the sink. A row without keys gives 0 and an lse of
/// -infinity, or of the sink's logit.
public func attend(
  _ shape: AttentionShape, queries: [Double], keys: [Double], values: [Double]? = nil, scale: Double,
  indices: [Int]? = nil, visible: [Int]? = nil, sink: [Double]? = nil
) -> Attended {
  precondition(queries.count == shape.queries * shape.heads * shape.keyDim, "queries [n, heads, keyDim]")
  precondition(keys.count == shape.keys * shape.keyHeads * shape.keyDim, "keys [m, keyHeads, keyDim]")
  let valueCount = shape.keys * shape.keyHeads * shape.valueDim
  precondition(
    values.map { $0.count == valueCount } ?? (shape.valueDim <= shape.keyDim), "values [m, keyHeads, valueDim]")
  let rows = attendedKeys(shape, indices: indices, visible: visible)
  let valueRows = values ?? keys
  let valueStride = values == nil ? shape.keyDim : shape.valueDim
  var result = Attended(out: [], lse: [])
  for t in 0..<shape.queries {
    for h in 0..<shape.heads {
      let keyHead = h / (shape.heads / shape.keyHeads)
      let logits = rows[t].map { s in
        scale
          * dot(
            queries, (t * shape.heads + h) * shape.keyDim,
            keys, (s * shape.keyHeads + keyHead) * shape.keyDim, count: shape.keyDim)
      }
      let lse = logSumExp(logits + (sink.map { [$0[h]] } ?? []))
      var out = Array(repeating: 0.0, count: shape.valueDim)
      for (s, logit) in zip(rows[t], logits) {
        let probability = exp(logit - lse)
        let start = (s * shape.keyHeads + keyHead) * valueStride
        for i in 0..<shape.valueDim { out[i] += probability * valueRows[start + i] }
      }
      result.out += out
      result.lse.append(lse)
    }
  }
  return result
}

/// The attention over two disjoint sets of keys, from the attention over each:
///
///     lse = ln(exp lse_a + exp lse_b);   out = exp(lse_a - lse) out_a + exp(lse_b - lse) out_b
///
/// A side whose lse is -infinity is absent.
public func mergeAttended(_ a: Attended, _ b: Attended) -> Attended {
  let valueDim = a.lse.isEmpty ? 0 : a.out.count / a.lse.count
  var merged = a
  for row in a.lse.indices {
    let lse = logSumExp([a.lse[row], b.lse[row]])
    let weightA = a.lse[row] == -.infinity ? 0 : exp(a.lse[row] - lse)
    let weightB = b.lse[row] == -.infinity ? 0 : exp(b.lse[row] - lse)
    merged.lse[row] = lse
    for i in row * valueDim..<(row + 1) * valueDim {
      merged.out[i] = weightA * a.out[i] + weightB * b.out[i]
    }
  }
  return merged
}

/// ln(sum_i exp x_i), from the largest x so that nothing overflows; -infinity for none.
func logSumExp(_ x: [Double]) -> Double {
  guard let largest = x.max(), largest > -.infinity else { return -.infinity }
  return largest + log(x.reduce(0) { $0 + exp($1 - largest) })
}

private func attendedKeys(_ shape: AttentionShape, indices: [Int]?, visible: [Int]?) -> [[Int]] {
  guard let indices else {
    let visible = visible ?? causalVisible(queries: shape.queries, keys: shape.keys)
    return visible.map { Array(0..<$0) }
  }
  let width = shape.queries == 0 ? 0 : indices.count / shape.queries
  return (0..<shape.queries).map { t in indices[t * width..<(t + 1) * width].filter { $0 >= 0 } }
}
