// Typed buffers for operator tests: numbers are made in Double, stored in a dtype, and read back as the Doubles that
// the operator sees, so that the reference works on exactly the same inputs.

import TamisKernels
import TamisOperators
import TamisReference
import TamisRuntime
import TamisTestSupport

/// A tensor that owns its memory, with 64 guard bytes behind it.
final class Buffer {
  let tensor: Tensor
  private let memory: UnsafeMutableRawPointer
  private let scales: UnsafeMutablePointer<Float>
  private let bytes: Int
  private static let guardByte: UInt8 = 0xA5

  init(_ dtype: DType, _ shape: [Int], block: Int = 0) {
    let count = shape.reduce(1, *)
    let columns = shape.last ?? 1
    let perRow = block == 0 ? 1 : (columns + block - 1) / block
    switch dtype {
    case .mla656: bytes = shape[0] * MLA656.bytes
    case .index132: bytes = (shape[0] + 63) / 64 * 64 * Index132.bytes
    default: bytes = count * dtype.bytes
    }
    memory = UnsafeMutableRawPointer.allocate(byteCount: bytes + 64, alignment: 64)
    memory.initializeMemory(as: UInt8.self, repeating: 0, count: bytes)
    (memory + bytes).initializeMemory(as: UInt8.self, repeating: Buffer.guardByte, count: 64)
    let rows = columns == 0 ? 0 : count / columns
    scales = .allocate(capacity: max(rows * perRow, 1))
    scales.initialize(repeating: 1, count: max(rows * perRow, 1))
    var axes = SIMD4<Int>(repeating: 0)
    for (axis, size) in shape.enumerated() { axes[axis] = size }
    tensor = try! Tensor(
      "test", data: memory, dtype: dtype.rawValue, rank: shape.count, shape: axes, stride: SIMD4(repeating: 0),
      scale: dtype.isScaled ? scales : nil, block: block)
  }

  convenience init(_ dtype: DType, _ shape: [Int], _ values: [Double], block: Int = 0) {
    self.init(dtype, shape, block: block)
    let source = Buffer(.f32, shape)
    source.set(values)
    try! Quantize.run(
      Context.unmetered, x: source.tensor, how: Quantization(powerOfTwo: false, hadamard: false), out: tensor)
  }

  deinit {
    memory.deallocate()
    scales.deallocate()
  }

  /// F32 only: the values themselves.
  func set(_ values: [Double]) {
    let floats = memory.assumingMemoryBound(to: Float.self)
    for (i, value) in values.enumerated() { floats[i] = Float(value) }
  }

  /// What the operator sees.
  var values: [Double] {
    let shape = (0..<tensor.rank).map { tensor.shape[$0] }
    let out = Buffer(.f32, shape)
    try! Quantize.back(Context.unmetered, x: tensor, out: out.tensor)
    let floats = out.memory.assumingMemoryBound(to: Float.self)
    return (0..<shape.reduce(1, *)).map { Double(floats[$0]) }
  }

  var floats: [Float] {
    let floats = memory.assumingMemoryBound(to: Float.self)
    return (0..<bytes / 4).map { floats[$0] }
  }
  var bits: [UInt32] { floats.map(\.bitPattern) }
  var ints: [Int] {
    let ints = memory.assumingMemoryBound(to: Int32.self)
    return (0..<bytes / 4).map { Int(ints[$0]) }
  }

  var guardIntact: Bool {
    (0..<64).allSatisfy { (memory + bytes).load(fromByteOffset: $0, as: UInt8.self) == Buffer.guardByte }
  }
}

func makeContext(_ isa: String, threads: UInt32 = 1) -> Context {
  var options = ContextOptions()
  options.isaCap = isa
  options.threads = threads
  return try! Context.create(options)
}

extension SplitMix64 {
  mutating func normals(_ count: Int, scale: Double) -> [Double] { (0..<count).map { _ in normal() * scale } }
}
