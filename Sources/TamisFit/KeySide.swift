// Index keys and their gradients: k_s = Rot_s(gain (z - mean) / deviation + bias), z = Wk x_s. Blocks of 64 keys at a
// time, sums over blocks in order, so that no result depends on the number of threads.

import TamisKernels
import TamisRuntime

struct KeySide {
  static let block = 64
  private static let epsilon: Float = 1e-6

  let context: Context
  let shape: IndexerShape
  let memory: StepMemory
  let rotary: RotaryTable

  private func blocks(_ tokens: Int) -> Int { (tokens &+ KeySide.block &- 1) / KeySide.block }

  /// memory.key and what the way back needs, for the first `tokens` rows of hidden [_, width].
  func forward(_ parameters: UnsafePointer<Float>, hidden: UnsafePointer<Float>, tokens: Int) {
    context.parallel(count: blocks(tokens), workers: context.threads) { item, _ in
      let first = item &* KeySide.block
      let count = min(KeySide.block, tokens &- first)
      let keys = memory.key + first &* shape.dim
      accumulate(
        context.kernels, hidden + first &* shape.width, (shape.width, 1), parameters + shape.keyAt, shape.dim,
        rows: count, shape.dim, shape.width, add: false, keys, shape.dim)
      for s in first..<first &+ count { normalise(parameters, s) }
      transpose(first, count)
    }
    // Scores are computed for whole vectors of keys; what lies behind the last key must be finite.
    for d in 0..<shape.dim {
      (memory.keyTransposed + d &* memory.stride + tokens).update(repeating: 0, count: memory.stride &- tokens)
    }
  }

  private func normalise(_ parameters: UnsafePointer<Float>, _ s: Int) {
    let (key, normal) = (memory.key + s &* shape.dim, memory.normal + s &* shape.dim)
    let (gain, bias) = (parameters + shape.gainAt, parameters + shape.biasAt)
    let (mean, inverse) = KeySide.moments(key, shape.dim)
    memory.inverse[s] = inverse
    for i in 0..<shape.dim {
      normal[i] = (key[i] - mean) * inverse
      key[i] = normal[i] * gain[i] + bias[i]
    }
    rotary.turn(key, position: s, sign: 1)
  }

  /// The mean of a vector, and one over its deviation.
  static func moments(_ vector: UnsafeMutablePointer<Float>, _ dim: Int) -> (mean: Float, inverse: Float) {
    let mean = sum(dim) { vector.vector($0) } / Float(dim)
    let variance =
      sum(dim) { i in
        let off = vector.vector(i) - mean
        return off * off
      } / Float(dim)
    return (mean, 1 / (variance + epsilon).squareRoot())
  }

  private func transpose(_ first: Int, _ count: Int) {
    for d in 0..<shape.dim {
      let to = memory.keyTransposed + (d &* memory.stride &+ first)
      let from = memory.key + (first &* shape.dim &+ d)
      for s in 0..<max(count, 0) { to[s] = from[s &* shape.dim] }
    }
  }

  /// From memory.keyGradient, of which group g covers the first reach[g] keys, to the gradients of Wk, gain and bias.
  func backward(
    _ parameters: UnsafePointer<Float>, hidden: UnsafePointer<Float>, reach: [Int],
    gradient: UnsafeMutablePointer<Float>
  ) {
    let tokens = reach.max() ?? 0
    context.parallel(count: blocks(tokens), workers: context.threads) { item, _ in
      let first = item &* KeySide.block
      let count = min(KeySide.block, tokens &- first)
      let sums = memory.normGradient + item &* 2 &* shape.dim
      sums.update(repeating: 0, count: 2 &* shape.dim)
      for s in first..<first &+ count { denormalise(parameters, s, reach: reach, sums: sums) }
    }
    let (gain, bias) = (gradient + shape.gainAt, gradient + shape.biasAt)
    gain.update(repeating: 0, count: 2 &* shape.dim)
    for item in 0..<blocks(tokens) {
      let sums = memory.normGradient + item &* 2 &* shape.dim
      for i in 0..<shape.dim {
        gain[i] += sums[i]
        bias[i] += sums[shape.dim &+ i]
      }
    }
    let widths = (shape.width &+ 31) / 32
    context.parallel(count: widths, workers: context.threads) { item, _ in
      let first = item &* 32
      accumulate(
        context.kernels, hidden + first, (1, shape.width), memory.keyGradient, shape.dim,
        rows: min(32, shape.width &- first), shape.dim, tokens, add: false,
        gradient + (shape.keyAt &+ first &* shape.dim), shape.dim)
    }
  }

  /// Sums the groups' gradients of one key and takes the sum back through rotation and normalisation, in place.
  private func denormalise(
    _ parameters: UnsafePointer<Float>, _ s: Int, reach: [Int], sums: UnsafeMutablePointer<Float>
  ) {
    let dim = shape.dim
    let key = memory.keyGradient + s &* dim
    var begun = false
    for (group, end) in reach.enumerated() where s < end {
      let from = memory.keyGradient + (group &* memory.tokens &+ s) &* dim
      for i in 0..<dim { key[i] = begun ? key[i] + from[i] : from[i] }
      begun = true
    }
    if !begun { key.update(repeating: 0, count: dim) }
    rotary.turn(key, position: s, sign: -1)
    let normal = memory.normal + s &* dim
    let gain = parameters + shape.gainAt
    for i in 0..<dim {
      sums[i] += key[i] * normal[i]
      sums[dim &+ i] += key[i]
      key[i] *= gain[i]
    }
    let mean = KeySide.sum(dim) { key.vector($0) } / Float(dim)
    let along = KeySide.sum(dim) { key.vector($0) * normal.vector($0) } / Float(dim)
    let inverse = memory.inverse[s]
    for i in 0..<dim { key[i] = (key[i] - mean - normal[i] * along) * inverse }
  }

  /// The sum of `count` (a multiple of 16) numbers, sixteen at a time.
  @inline(__always)
  private static func sum(_ count: Int, _ part: (Int) -> SIMD16<Float>) -> Float {
    var total = SIMD16<Float>(repeating: 0)
    var i = 0
    while i < count {
      total += part(i)
      i &+= 16
    }
    return total.sum()
  }
}

extension UnsafeMutablePointer where Pointee == Float {
  @inline(__always)
  fileprivate func vector(_ i: Int) -> SIMD16<Float> {
    UnsafeRawPointer(self + i).loadUnaligned(as: SIMD16<Float>.self)
  }
}
