// project: y = x W^T, the linear layers around the three verbs. Work is cut by output rows of W, so a decode step
// streams W once over all threads; 8-bit and half weights are expanded a block of outputs at a time.

import TamisKernels
package import TamisRuntime

package enum Project {
  /// Output features in work at a time.
  private static let blockOutputs = 64

  @inline(never)  // one copy, whoever calls
  package static func run(_ context: Context, x: Tensor, weight: Tensor, out: Tensor) throws(TamisError) {
    try check(x: x, weight: weight, out: out)
    let began = Stopwatch()
    let rows = x.shape[0]
    let inputs = x.shape[1]
    let outputs = weight.shape[0]
    let type = Int32(weight.dtype == .f32 || weight.dtype == .f16 ? TK_F32 : TK_BF16)
    let bytes = type == Int32(TK_F32) ? 4 : 2
    let direct: DType = type == Int32(TK_F32) ? .f32 : .bf16
    let kernels = context.kernels
    let items = (outputs &+ blockOutputs &- 1) / blockOutputs
    let workers = max(1, min(context.threads, items))

    let operandBytes = x.dtype == direct ? 0 : try Size.roundUp(Size.product(rows, inputs, bytes), to: 64)
    let rowBytes = try Size.roundUp(Size.product(inputs, 4), to: 64)
    let weightBytes = weight.dtype == direct ? 0 : try Size.roundUp(Size.product(blockOutputs, inputs, bytes), to: 64)
    let resultBytes = try Size.roundUp(Size.product(rows, blockOutputs, 4), to: 64)
    let kernelBytes = try Size.roundUp(
      kernels.pointee.matmul_scratch_bytes(
        type, Int32(truncatingIfNeeded: rows), Int32(blockOutputs), Int32(truncatingIfNeeded: inputs)), to: 64)
    let workerBytes = try Size.sum(rowBytes, weightBytes, resultBytes, kernelBytes)
    let scratch = try context.borrowScratch(bytes: Size.sum(operandBytes, Size.product(workers, workerBytes)))
    defer { context.returnScratch(scratch) }

    var operands = UnsafeRawPointer(x.data)
    var operandStride = x.stride[0]
    if x.dtype != direct {
      operands = UnsafeRawPointer(scratch.pointer)
      operandStride = inputs &* bytes
      let floats = (scratch.pointer + operandBytes).assumingMemoryBound(to: Float.self)
      for row in 0..<rows {
        let to = scratch.pointer + row &* operandStride
        if direct == .f32 {
          loadFloats(x.dtype, x.row(row), nil, 1, inputs, to: to.assumingMemoryBound(to: Float.self), kernels)
        } else {
          loadFloats(x.dtype, x.row(row), nil, 1, inputs, to: floats, kernels)
          storeFloats(floats, inputs, as: .bf16, to: to, kernels)
        }
      }
    }
    let source = Rows(weight)
    let token = context.beginCall()
    let others = context.parallel(count: items, workers: workers) { item, worker in
      guard !context.cancelled(token), rows > 0 else { return }
      let first = item &* blockOutputs
      let count = min(blockOutputs, outputs &- first)
      let memory = scratch.pointer + (operandBytes &+ worker &* workerBytes)
      let expanded = memory + rowBytes
      let result = (expanded + weightBytes).assumingMemoryBound(to: Float.self)
      let kernelScratch = expanded + (weightBytes &+ resultBytes)
      var weights = source.row(first)
      var weightStride = source.stride
      if weight.dtype != direct {
        weights = UnsafeRawPointer(expanded)
        weightStride = inputs &* bytes
        for o in 0..<count {
          let to = expanded + o &* weightStride
          if direct == .f32 {
            loadFloats(
              weight.dtype, source.row(first &+ o), nil, 1, inputs, to: to.assumingMemoryBound(to: Float.self), kernels)
          } else {
            source.expand(first &+ o, to: to.assumingMemoryBound(to: UInt16.self), kernels)
          }
        }
      }
      let straight = out.dtype == .f32
      let to = straight ? out.data + first &* 4 : UnsafeMutableRawPointer(result)
      kernels.pointee.matmul(
        type, operands, operandStride, weights, weightStride, Int32(truncatingIfNeeded: rows),
        Int32(truncatingIfNeeded: count), Int32(truncatingIfNeeded: inputs), to.assumingMemoryBound(to: Float.self),
        straight ? out.stride[0] : blockOutputs &* 4, kernelScratch)
      if straight { return }
      for row in 0..<rows {
        storeFloats(
          result + row &* blockOutputs, count, as: out.dtype, to: out.row(row) + first &* out.dtype.bytes, kernels)
      }
    }
    try context.checkCancelled(token)
    context.counters.add(
      .project,
      began.sample(others) { sample in
        sample.queries = UInt64(rows)
        sample.flops = 2 &* UInt64(rows) &* UInt64(inputs) &* UInt64(outputs)
        sample.bytes = UInt64(
          x.count &* x.dtype.bytes &+ outputs &* source.bytesPerRow &+ out.count &* out.dtype.bytes)
      })
  }

  private static func check(x: Tensor, weight: Tensor, out: Tensor) throws(TamisError) {
    try require(x, "x", rank: 2)
    try require(weight, "weight", rank: 2)
    try require(out, "out", rank: 2)
    try require(x, "x", .f32, .f16, .bf16)
    try require(weight, "weight", .f32, .f16, .bf16, .f8e4m3, .i8)
    try require(out, "out", .f32, .f16, .bf16)
    try require(weight, "weight", axis: 1, is: x.shape[1])
    try require(out, "out", axis: 0, is: x.shape[0])
    try require(out, "out", axis: 1, is: weight.shape[0])
    guard x.shape[1] >= 1 else { throw TamisError(.argument, "x: no inputs") }
    guard max(x.shape[0], x.shape[1], weight.shape[0]) <= Int(Int32.max) else {
      throw TamisError(.unsupported, "x: more than 2^31-1 rows, inputs or outputs")
    }
    try requireApart(out, "out", from: (x, "x"), (weight, "weight"))
  }
}
