// What the tests of this room share: small random hosts with an attention, and tensors over Swift arrays.

import Glibc
import TamisOperators
import TamisReference
import TamisRuntime
import TamisTestSupport
import Testing

@testable import TamisFit

/// Runs body with a view of the array.
func withTensor<Result>(
  _ values: [Float], _ shape: [Int], _ body: (Tensor) throws -> Result
) throws -> Result {
  var copy = values
  return try copy.withUnsafeMutableBytes { bytes in
    var axes = SIMD4<Int>(repeating: 0)
    for (axis, size) in shape.enumerated() { axes[axis] = size }
    return try body(
      Tensor(
        "test", data: bytes.baseAddress, dtype: DType.f32.rawValue, rank: shape.count, shape: axes,
        stride: SIMD4(repeating: 0), scale: nil, block: 0))
  }
}

/// A host with causal or full attention of several heads over random hidden states.
struct Host {
  var tokens = 40
  var width = 20
  var features = 12
  var heads = 4
  var keyHeads = 2
  var dim = 8
  var positions: [Int32] = [3, 0, 17, 39, 22, 8, 31]
  var allVisible = false
  var seed: UInt64 = 1

  let hidden: [Double]
  let query: [Double]  // r [rows, features]
  let q: [Double]  // [rows, heads, dim]
  let k: [Double]  // [tokens, key heads, dim]

  init(
    tokens: Int = 40, width: Int = 20, features: Int = 12, positions: [Int32] = [3, 0, 17, 39, 22, 8, 31],
    allVisible: Bool = false, seed: UInt64 = 1
  ) {
    self.tokens = tokens
    self.width = width
    self.features = features
    self.positions = positions
    self.allVisible = allVisible
    var random = SplitMix64(seed: seed)
    hidden = random.normals(tokens * width)
    query = random.normals(positions.count * features)
    q = random.normals(positions.count * 4 * 8)
    k = random.normals(tokens * 2 * 8, deviation: 2)
  }

  func visible(_ row: Int) -> Int { allVisible ? tokens : Int(positions[row]) + 1 }

  /// p [rows, tokens], the mean over heads of the softmax, in Double.
  var attention: [[Double]] {
    positions.indices.map { row in
      var p = [Double](repeating: 0, count: tokens)
      for h in 0..<heads {
        let scores = (0..<visible(row)).map { s in
          (0..<dim).reduce(0.0) { sum, d in
            sum + q[(row * heads + h) * dim + d] * k[(s * keyHeads + h / (heads / keyHeads)) * dim + d]
          } / Double(dim).squareRoot()
        }
        let exponentials = scores.map { exp($0) }
        let all = exponentials.reduce(0, +)
        for s in scores.indices { p[s] += exponentials[s] / all / Double(heads) }
      }
      return p
    }
  }

  /// Adds this host to a capture, by probabilities or by queries and keys.
  func add(to capture: Capture, byHeads: Bool) throws {
    try withTensor(hidden.map(Float.init), [tokens, width]) { x in
      try withTensor(query.map(Float.init), [positions.count, features]) { r in
        try positions.withUnsafeBufferPointer { rows in
          var input = CaptureInput(hidden: x)
          input.features = r
          input.positions = rows.baseAddress
          input.allVisible = allVisible
          if byHeads {
            try withTensor(q.map(Float.init), [positions.count, heads, dim]) { q in
              try withTensor(k.map(Float.init), [tokens, keyHeads, dim]) { k in
                input.queries = q
                input.keys = k
                try capture.add(input)
              }
            }
          } else {
            try withTensor(attention.joined().map { Float($0) }, [positions.count, tokens]) { p in
              input.attention = p
              try capture.add(input)
            }
          }
        }
      }
    }
  }
}

func makeIndexer(
  _ context: Context, width: Int = 20, features: Int = 12, heads: Int = 3, dim: Int = 16, rope: Int = 8,
  seed: UInt64 = 5
) throws -> LearnedIndexer {
  let shape = try IndexerShape(width: width, features: features, heads: heads, dim: dim, rope: rope)
  return try LearnedIndexer(
    context, shape, frequencies: LearnedIndexer.frequencies(rope: rope, base: 100), seed: seed)
}

/// A tensor of the indexer, [out, in].
func values(_ indexer: LearnedIndexer, _ which: IndexerTensor) throws -> [Float] {
  let dimensions = which.dimensions(indexer.shape)
  var out = [Float](repeating: 0, count: dimensions.reduce(1, *))
  try out.withUnsafeMutableBytes { bytes in
    var axes = SIMD4<Int>(repeating: 0)
    for (axis, size) in dimensions.enumerated() { axes[axis] = size }
    try indexer.read(
      which,
      out: Tensor(
        "out", data: bytes.baseAddress, dtype: DType.f32.rawValue, rank: dimensions.count, shape: axes,
        stride: SIMD4(repeating: 0), scale: nil, block: 0))
  }
  return out
}

func rows(_ flat: [Float], _ width: Int) -> [[Double]] {
  stride(from: 0, to: flat.count, by: width).map { start in flat[start..<start + width].map(Double.init) }
}
