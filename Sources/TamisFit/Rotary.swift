// The rotary embedding of index queries and keys: half-split pairs (i, i + rope / 2) of the first dims, as
// DeepSeek-V3.2 turns them. Turning back is turning by the opposite angle.

import Glibc

struct RotaryTable {
  /// [tokens, half]
  let cosine, sine: UnsafePointer<Float>
  let half: Int

  static func fill(_ memory: StepMemory, frequencies: [Float]) -> RotaryTable {
    let half = frequencies.count
    for (i, frequency) in frequencies.enumerated() {
      for position in 0..<max(memory.tokens, 0) {
        let angle = Double(position) * Double(frequency)
        memory.cosine[position &* half &+ i] = Float(cos(angle))
        memory.sine[position &* half &+ i] = Float(sin(angle))
      }
    }
    return RotaryTable(cosine: memory.cosine, sine: memory.sine, half: half)
  }

  /// One position alone, at place 0 of [cosines, sines].
  static func fill(
    _ memory: UnsafeMutablePointer<Float>, position: Int, _ frequencies: [Float]
  ) -> RotaryTable {
    let half = frequencies.count
    for (i, frequency) in frequencies.enumerated() {
      let angle = Double(position) * Double(frequency)
      memory[i] = Float(cos(angle))
      memory[half &+ i] = Float(sin(angle))
    }
    return RotaryTable(cosine: memory, sine: memory + half, half: half)
  }

  /// Turns one vector in place; sign -1: back.
  @inline(__always)
  func turn(_ vector: UnsafeMutablePointer<Float>, position: Int, sign: Float) {
    let (cosine, sine) = (cosine + position &* half, sine + position &* half)
    for i in 0..<half {
      let (low, high) = (vector[i], vector[half &+ i])
      let (c, s) = (cosine[i], sign * sine[i])
      vector[i] = low * c - high * s
      vector[half &+ i] = low * s + high * c
    }
  }
}
