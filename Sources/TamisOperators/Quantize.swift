// quantise and dequantise: rows of numbers between dtypes, with the scales and the rotation that DeepSeek's indexer
// and caches use. The cache writes its rows with the same functions.

import Synchronization
package import TamisKernels
package import TamisRuntime

/// How 8-bit rows are made.
package struct Quantization: Sendable {
  package var powerOfTwo: Bool
  package var hadamard: Bool

  package init(powerOfTwo: Bool, hadamard: Bool) {
    self.powerOfTwo = powerOfTwo
    self.hadamard = hadamard
  }
}

/// One row in some dtype: numbers and, for 8-bit dtypes, scales.
package struct RowTarget {
  package let dtype: DType
  package let data: UnsafeMutableRawPointer
  package let scale: UnsafeMutablePointer<Float>?
  package let block: Int

  package init(dtype: DType, data: UnsafeMutableRawPointer, scale: UnsafeMutablePointer<Float>?, block: Int) {
    self.dtype = dtype
    self.data = data
    self.scale = scale
    self.block = block
  }

  /// floats [n] are finite (also rotated, see Finite) where the row is 8-bit, and are overwritten by the rotation.
  package func store(
    _ floats: UnsafeMutablePointer<Float>, _ n: Int, _ how: Quantization, _ kernels: UnsafePointer<tk_table>
  ) {
    if how.hadamard { kernels.pointee.hadamard(floats, Int64(n)) }
    switch dtype {
    case .mla656:
      quantizeE4M3(floats, MLA656.latent, how, kernels)
      let rope = (data + MLA656.ropeOffset).assumingMemoryBound(to: UInt16.self)
      kernels.pointee.bf16_from_f32(floats + MLA656.latent, Int64(MLA656.rope), rope)
    case .f8e4m3, .index132: quantizeE4M3(floats, n, how, kernels)
    case .i8:
      var done = 0
      while done < n {
        let s = kernels.pointee.i8_from_f32(
          floats + done, Int64(min(block, n &- done)), (data + done).assumingMemoryBound(to: Int8.self))
        scale?[done / block] = s
        done &+= min(block, n &- done)
      }
    default: storeFloats(floats, n, as: dtype, to: data, kernels)
    }
  }

  private func quantizeE4M3(
    _ floats: UnsafePointer<Float>, _ n: Int, _ how: Quantization, _ kernels: UnsafePointer<tk_table>
  ) {
    var done = 0
    while done < n {
      let count = min(block, n &- done)
      let s = kernels.pointee.e4m3_from_f32(
        floats + done, Int64(count), how.powerOfTwo ? 1 : 0, (data + done).assumingMemoryBound(to: UInt8.self))
      scale?[done / block] = s
      done &+= count
    }
  }
}

package enum Quantize {
  /// Elements that one thread takes at a time, at least.
  private static let grain = 1 << 14

  package static func run(
    _ context: Context, x: Tensor, how: Quantization, out: Tensor
  ) throws(TamisError) {
    try require(x, "x", .f32, .f16, .bf16)
    try requireSameShape(x, out)
    try requireApart(out, "out", from: (x, "x"))
    guard out.dtype != .i32 else { throw TamisError(.argument, "out: dtype I32 is not accepted here") }
    if out.dtype.isScaled, out.scale == nil { throw TamisError(.argument, "out: an 8-bit dtype needs a scale array") }
    if how.hadamard, out.columns & (out.columns &- 1) != 0 {
      throw TamisError(.argument, "x: \(out.columns) is no power of two, which hadamard needs")
    }
    try convert(context, from: x, to: out, how, counted: .quantize)
  }

  package static func back(_ context: Context, x: Tensor, out: Tensor) throws(TamisError) {
    try require(out, "out", .f32, .f16, .bf16)
    try requireSameShape(x, out)
    try requireApart(out, "out", from: (x, "x"))
    guard x.dtype != .i32 else { throw TamisError(.argument, "x: dtype I32 is not accepted here") }
    try convert(context, from: x, to: out, Quantization(powerOfTwo: false, hadamard: false), counted: .dequantize)
  }

  private static func requireSameShape(_ x: Tensor, _ out: Tensor) throws(TamisError) {
    try require(out, "out", rank: x.rank)
    for axis in 0..<x.rank { try require(out, "out", axis: axis, is: x.shape[axis]) }
    guard x.columns <= Int(Int32.max) else { throw TamisError(.unsupported, "x: the last axis is too long") }
  }

  private static func convert(
    _ context: Context, from x: Tensor, to out: Tensor, _ how: Quantization, counted: Operator
  ) throws(TamisError) {
    let began = Stopwatch()
    let columns = x.columns
    let rows = columns == 0 ? 0 : x.count / columns
    let rowBytes = try Size.roundUp(Size.product(columns, 4), to: 64)
    let grainRows = max(1, grain / max(columns, 1))
    let items = (rows &+ grainRows &- 1) / grainRows
    let workers = max(1, min(context.threads, items))
    let scratch = try context.borrowScratch(bytes: Size.product(workers, rowBytes))
    defer { context.returnScratch(scratch) }
    let source = Rows(x)
    let token = context.beginCall()
    func forEachRow(_ body: (_ row: Int, _ floats: UnsafeMutablePointer<Float>) -> Void) -> UInt64 {
      context.parallel(count: items, workers: workers) { item, worker in
        guard !context.cancelled(token) else { return }
        let floats = (scratch.pointer + worker &* rowBytes).assumingMemoryBound(to: Float.self)
        for row in item &* grainRows..<min(rows, (item &+ 1) &* grainRows) { body(row, floats) }
      }
    }
    var others: UInt64 = 0
    if !out.dtype.isFloat {
      let bad = Atomic<Int>(rows)  // the first row that cannot be stored
      others = forEachRow { row, floats in
        let from = address(x, row)
        let good =
          how.hadamard
          ? Finite.rotated(x.dtype, from, columns, floats, context.kernels) : Finite.row(x.dtype, from, columns)
        if !good { bad.min(row, ordering: .relaxed) }
      }
      try context.checkCancelled(token)
      let first = bad.load(ordering: .relaxed)
      guard first == rows else { throw TamisError(.argument, "x: row \(first) holds NaN or infinity") }
    }
    others &+= forEachRow { row, floats in
      load(x, source, row, to: floats, context.kernels)
      target(out, row).store(floats, columns, how, context.kernels)
    }
    try context.checkCancelled(token)
    context.counters.add(
      counted,
      began.sample(others) { sample in
        sample.queries = UInt64(rows)
        sample.bytes = UInt64(x.extent) &+ UInt64(out.extent)
      })
  }

  /// Address of flattened row `row` (over all leading axes).
  private static func address(_ tensor: Tensor, _ row: Int) -> UnsafeMutableRawPointer {
    var left = row
    var offset = 0
    var axis = tensor.rank &- 2
    while axis >= 0 {
      let size = max(tensor.shape[axis], 1)
      offset &+= left % size &* tensor.stride[axis]
      left /= size
      axis &-= 1
    }
    return tensor.data + offset
  }

  private static func load(
    _ x: Tensor, _ rows: Rows, _ row: Int, to floats: UnsafeMutablePointer<Float>, _ kernels: UnsafePointer<tk_table>
  ) {
    switch x.dtype {
    case .mla656:
      let source = UnsafeRawPointer(x.row(row))
      kernels.pointee.f32_from_e4m3(
        source.assumingMemoryBound(to: UInt8.self), (source + MLA656.scaleOffset).assumingMemoryBound(to: Float.self),
        Int64(MLA656.scaleBlock), Int64(MLA656.latent), floats)
      kernels.pointee.f32_from_bf16(
        (source + MLA656.ropeOffset).assumingMemoryBound(to: UInt16.self), Int64(MLA656.rope), floats + MLA656.latent)
    case .index132:
      loadFloats(.f8e4m3, rows.row(row), rows.rowScale(row), rows.scaleBlock, x.columns, to: floats, kernels)
    default:
      let scale = x.scale.map { UnsafePointer($0 + row &* x.scalesPerRow) }
      loadFloats(x.dtype, address(x, row), scale, max(x.block, 1), x.columns, to: floats, kernels)
    }
  }

  private static func target(_ out: Tensor, _ row: Int) -> RowTarget {
    switch out.dtype {
    case .mla656:
      let data = out.row(row)
      return RowTarget(
        dtype: .mla656, data: data, scale: (data + MLA656.scaleOffset).assumingMemoryBound(to: Float.self),
        block: MLA656.scaleBlock)
    case .index132:
      let tokens = out.block == 0 ? Index132.pageTokens : out.block
      let page = out.data + row / tokens &* out.stride[0]
      let scales = (page + tokens &* Index132.dim).assumingMemoryBound(to: Float.self)
      return RowTarget(
        dtype: .index132, data: page + row % tokens &* Index132.dim, scale: scales + row % tokens, block: Index132.dim)
    default:
      return RowTarget(
        dtype: out.dtype, data: address(out, row), scale: out.scale.map { $0 + row &* out.scalesPerRow },
        block: max(out.block, 1))
    }
  }
}
