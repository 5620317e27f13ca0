// What fitting an indexer minimises, in Double and as plainly as it can be written: the divergence between an attention
// and the softmax of index scores, over everything a row sees or over the keys the indexer chooses (DeepSeek-V3.2's warm-up
// and sparse stages). It has no gradients: those of the library are compared with differences of this.

import Foundation

public struct IndexerLoss {
  public let heads, dim, rope: Int
  public let frequencies: [Double]  // [rope / 2]
  public let hidden: [[Double]]  // x [tokens, width]
  public let features: [[Double]]  // r [rows, features]
  public let positions: [Int]  // [rows]
  public let attention: [[Double]]  // p [rows, tokens], zero where a row does not see
  public let allVisible: Bool
  public let selected: Int  // 0: everything

  public init(
    heads: Int, dim: Int, rope: Int, frequencies: [Double], hidden: [[Double]], features: [[Double]], positions: [Int],
    attention: [[Double]], allVisible: Bool, selected: Int
  ) {
    self.heads = heads
    self.dim = dim
    self.rope = rope
    self.frequencies = frequencies
    self.hidden = hidden
    self.features = features
    self.positions = positions
    self.attention = attention
    self.allVisible = allVisible
    self.selected = selected
  }

  /// The parameters in the checkpoint's layout, [out][in].
  public struct Parameters {
    public var query: [[Double]]  // [heads * dim, features]
    public var key: [[Double]]  // [dim, width]
    public var gain, bias: [Double]  // [dim]
    public var weights: [[Double]]  // [heads, width]

    public init(query: [[Double]], key: [[Double]], gain: [Double], bias: [Double], weights: [[Double]]) {
      self.query = query
      self.key = key
      self.gain = gain
      self.bias = bias
      self.weights = weights
    }
  }

  private func product(_ matrix: [[Double]], _ vector: [Double]) -> [Double] {
    matrix.map { row in zip(row, vector).reduce(0) { $0 + $1.0 * $1.1 } }
  }

  private func turned(_ vector: [Double], _ position: Int) -> [Double] {
    var out = vector
    let half = rope / 2
    for i in 0..<half {
      let angle = Double(position) * frequencies[i]
      out[i] = vector[i] * cos(angle) - vector[half + i] * sin(angle)
      out[half + i] = vector[i] * sin(angle) + vector[half + i] * cos(angle)
    }
    return out
  }

  public func key(_ p: Parameters, _ s: Int) -> [Double] {
    let z = product(p.key, hidden[s])
    let mean = z.reduce(0, +) / Double(dim)
    let variance = z.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Double(dim)
    let deviation = (variance + 1e-6).squareRoot()
    return turned((0..<dim).map { (z[$0] - mean) / deviation * p.gain[$0] + p.bias[$0] }, s)
  }

  /// I of one row over the keys it sees.
  public func scores(_ p: Parameters, row: Int, keys: [[Double]]) -> [Double] {
    let position = positions[row]
    let all = product(p.query, features[row])
    let weights = product(p.weights, hidden[position]).map { $0 / Double(heads * dim).squareRoot() }
    let queries = (0..<heads).map { turned(Array(all[$0 * dim..<($0 + 1) * dim]), position) }
    return (0..<(allVisible ? hidden.count : position + 1)).map { s in
      (0..<heads).reduce(0) { sum, h in
        sum + weights[h] * max(0, zip(queries[h], keys[s]).reduce(0) { $0 + $1.0 * $1.1 })
      }
    }
  }

  public func loss(_ p: Parameters) -> Double {
    let keys = hidden.indices.map { key(p, $0) }
    let rows = positions.indices.map { divergence(scores(p, row: $0, keys: keys), attention[$0]) }
    return rows.reduce(0, +) / Double(rows.count)
  }

  private func divergence(_ scores: [Double], _ p: [Double]) -> Double {
    var chosen = Array(scores.indices)
    if selected > 0, scores.count > selected {
      chosen = Array(chosen.sorted { (-scores[$0], $0) < (-scores[$1], $1) }.prefix(selected))
    }
    let mass = chosen.reduce(0) { $0 + p[$1] }
    let denominator = chosen.reduce(0) { $0 + exp(scores[$1]) }
    return chosen.reduce(0) { sum, s in
      let share = p[s] / mass
      return share > 0 ? sum + share * (log(share) - (scores[s] - log(denominator))) : sum
    }
  }
}
