// project: y = x W^T, the linear layers around the three verbs, one or many of them in one parallel region. Work is cut
// by output rows of W, so a decode step streams every W once over all threads; 8-bit and half weights are expanded a
// block of outputs at a time.

import TamisKernels
package import TamisRuntime

/// y [n, outputs] = x [n, inputs] W^T, W [outputs, inputs].
package struct Product {
  let x: Tensor
  let weight: Tensor
  let out: Tensor

  package init(x: Tensor, weight: Tensor, out: Tensor) {
    self.x = x
    self.weight = weight
    self.out = out
  }

  fileprivate func check() throws(TamisError) {
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

package enum Project {
  package static func run(_ context: Context, x: Tensor, weight: Tensor, out: Tensor) throws(TamisError) {
    try run(context, [Product(x: x, weight: weight, out: out)])
  }

  /// Products that do not read each other's results.
  @inline(never)  // one copy, whoever calls
  package static func run(_ context: Context, _ products: [Product]) throws(TamisError) {
    for product in products { try product.check() }
    let began = Stopwatch()
    let plan = try ProjectPlan(context, products)
    let scratch = try context.borrowScratch(bytes: plan.scratchBytes)
    defer { context.returnScratch(scratch) }
    let token = context.beginCall()
    let others = plan.parts.withUnsafeBufferPointer { parts in
      let work = ProjectWork(context: context, plan: plan, parts: parts, scratch: scratch.pointer)
      let others = work.convert()
      return others
        &+ context.parallel(count: plan.items, workers: plan.workers) { item, worker in
          guard !context.cancelled(token) else { return }
          work.run(item: item, worker: worker)
        }
    }
    try context.checkCancelled(token)
    context.counters.add(
      .project,
      began.sample(others) { sample in
        for part in plan.parts { part.count(&sample) }
      })
  }
}

/// How one product is cut: into blocks of outputs, its first one being item `firstItem` of the call.
private struct ProjectPart {
  /// Up to here a product is bound by reading W, and longer runs of it are read faster.
  private static let fewRows = 32

  /// Output features in work at a time. Kernels copy x once for each block, so many rows want long ones too, where
  /// weights need no memory of their own.
  private static func blockOutputs(_ threads: Int, rows: Int, outputs: Int, expands: Bool) -> Int {
    if expands { return rows <= fewRows ? 64 : 128 }
    let shares = max(1, (rows <= fewRows ? 2 : 4) &* threads)
    return max(64, min(rows <= fewRows ? outputs : 1024, outputs / shares) / 64 &* 64)
  }

  let product: Product
  let firstItem: Int
  let items: Int
  let blockOutputs: Int
  /// Arithmetic, and the dtype that needs no conversion for it.
  let type: Int32
  let direct: DType
  /// Where x lies as kernel operands in the scratch; nil: it is one already.
  let operandsAt: Int?
  /// Within a worker's memory: a row of floats first, then these.
  let expandedAt: Int
  let resultAt: Int
  let kernelAt: Int
  let workerBytes: Int

  var rows: Int { product.x.shape[0] }
  var inputs: Int { product.x.shape[1] }
  var outputs: Int { product.weight.shape[0] }
  var rowBytes: Int { inputs &* direct.bytes }
  var operandBytes: Int { get throws(TamisError) { try Size.roundUp(Size.product(rows, rowBytes), to: 64) } }

  static func type(_ weight: DType) -> Int32 { Int32(weight == .f32 || weight == .f16 ? TK_F32 : TK_BF16) }

  init(_ context: Context, _ product: Product, firstItem: Int, operandsAt: Int?) throws(TamisError) {
    let (rows, inputs, outputs) = (product.x.shape[0], product.x.shape[1], product.weight.shape[0])
    self.product = product
    self.firstItem = firstItem
    self.operandsAt = operandsAt
    type = ProjectPart.type(product.weight.dtype)
    direct = type == Int32(TK_F32) ? .f32 : .bf16
    let expands = product.weight.dtype != direct
    let block = ProjectPart.blockOutputs(context.threads, rows: rows, outputs: outputs, expands: expands)
    blockOutputs = block
    items = rows == 0 ? 0 : (outputs &+ block &- 1) / block
    let kernel = context.kernels.pointee.matmul_scratch_bytes(
      type, Int32(truncatingIfNeeded: rows), Int32(truncatingIfNeeded: block), Int32(truncatingIfNeeded: inputs))
    expandedAt = try Size.roundUp(Size.product(inputs, 4), to: 64)
    let expanded = expands ? try Size.product(block, inputs, direct.bytes) : 0
    resultAt = try Size.roundUp(Size.sum(expandedAt, expanded), to: 64)
    let result = product.out.dtype == .f32 ? 0 : try Size.product(rows, block, 4)
    kernelAt = try Size.roundUp(Size.sum(resultAt, result), to: 64)
    workerBytes = try Size.roundUp(Size.sum(kernelAt, kernel), to: 64)
  }

  /// Can the operands of another part serve this one?
  func sharesOperands(_ other: ProjectPart) -> Bool {
    product.x.data == other.product.x.data && product.x.shape == other.product.x.shape
      && product.x.stride == other.product.x.stride && product.x.dtype == other.product.x.dtype && type == other.type
  }

  func count(_ sample: inout Sample) {
    let (x, out) = (product.x, product.out)
    sample.queries &+= UInt64(rows)
    sample.flops &+= 2 &* UInt64(rows) &* UInt64(inputs) &* UInt64(outputs)
    sample.bytes &+= UInt64(
      x.count &* x.dtype.bytes &+ outputs &* Rows(product.weight).bytesPerRow &+ out.count &* out.dtype.bytes)
  }
}

private struct ProjectPlan {
  private(set) var parts: [ProjectPart] = []
  private(set) var items = 0
  private(set) var operandBytes = 0
  private(set) var workerBytes = 0
  let workers: Int
  let scratchBytes: Int

  init(_ context: Context, _ products: [Product]) throws(TamisError) {
    for product in products {
      var part = try ProjectPart(context, product, firstItem: items, operandsAt: nil)
      if product.x.dtype != part.direct {
        let shared = parts.last { $0.operandsAt != nil && $0.sharesOperands(part) }?.operandsAt
        part = try ProjectPart(context, product, firstItem: items, operandsAt: shared ?? operandBytes)
        if shared == nil { operandBytes = try Size.sum(operandBytes, part.operandBytes) }
      }
      items = try Size.sum(items, part.items)
      workerBytes = max(workerBytes, part.workerBytes)
      parts.append(part)
    }
    workers = max(1, min(context.threads, items))
    scratchBytes = try Size.sum(operandBytes, Size.product(workers, workerBytes))
  }
}

private struct ProjectWork {
  let context: Context
  let plan: ProjectPlan
  let parts: UnsafeBufferPointer<ProjectPart>
  let scratch: UnsafeMutableRawPointer

  /// Numbers whose conversion is worth a thread of its own.
  private static let grain = 1 << 15

  private func memory(_ worker: Int) -> UnsafeMutableRawPointer {
    scratch + (plan.operandBytes &+ worker &* plan.workerBytes)
  }

  // MARK: Operands

  func convert() -> UInt64 {
    var others: UInt64 = 0
    var done = 0
    for part in parts {
      guard let at = part.operandsAt, at >= done else { continue }
      done = at &+ part.rows &* part.rowBytes
      let workers = max(1, min(plan.workers, part.rows &* part.inputs / ProjectWork.grain))
      others &+= context.parallel(count: part.rows, workers: workers) { row, worker in
        convert(part, row, to: scratch + (at &+ row &* part.rowBytes), memory(worker))
      }
    }
    return others
  }

  private func convert(
    _ part: ProjectPart, _ row: Int, to operand: UnsafeMutableRawPointer, _ memory: UnsafeMutableRawPointer
  ) {
    let x = part.product.x
    if part.direct == .f32 {
      loadFloats(
        x.dtype, x.row(row), nil, 1, part.inputs, to: operand.assumingMemoryBound(to: Float.self), context.kernels)
      return
    }
    var floats = UnsafePointer(x.row(row).assumingMemoryBound(to: Float.self))
    if x.dtype != .f32 {
      let row = memory.assumingMemoryBound(to: Float.self)
      loadFloats(x.dtype, UnsafeRawPointer(floats), nil, 1, part.inputs, to: row, context.kernels)
      floats = UnsafePointer(row)
    }
    storeFloats(floats, part.inputs, as: .bf16, to: operand, context.kernels)
  }

  // MARK: Products

  func run(item: Int, worker: Int) {
    var low = 0
    var high = parts.count
    while high &- low > 1 {
      let middle = (low &+ high) &>> 1
      if parts[middle].firstItem <= item { low = middle } else { high = middle }
    }
    run(parts[low], block: item &- parts[low].firstItem, memory(worker))
  }

  private func run(_ part: ProjectPart, block: Int, _ memory: UnsafeMutableRawPointer) {
    let (x, out) = (part.product.x, part.product.out)
    let first = block &* part.blockOutputs
    let count = min(part.blockOutputs, part.outputs &- first)
    let (weights, weightStride) = weights(part, first, count, memory)
    let straight = out.dtype == .f32
    let to = straight ? out.data + first &* 4 : memory + part.resultAt
    let toStride = straight ? out.stride[0] : part.blockOutputs &* 4
    context.kernels.pointee.matmul(
      part.type, part.operandsAt.map { UnsafeRawPointer(scratch + $0) } ?? UnsafeRawPointer(x.data),
      part.operandsAt == nil ? x.stride[0] : part.rowBytes, weights, weightStride,
      Int32(truncatingIfNeeded: part.rows), Int32(truncatingIfNeeded: count), Int32(truncatingIfNeeded: part.inputs),
      to.assumingMemoryBound(to: Float.self), toStride, memory + part.kernelAt)
    if straight { return }
    for row in Range(uncheckedBounds: (0, part.rows)) {
      storeFloats(
        (to + row &* toStride).assumingMemoryBound(to: Float.self), count, as: out.dtype,
        to: out.row(row) + first &* out.dtype.bytes, context.kernels)
    }
  }

  /// Weights first ..< first + count as operands: where they lie, or expanded.
  private func weights(
    _ part: ProjectPart, _ first: Int, _ count: Int, _ memory: UnsafeMutableRawPointer
  ) -> (UnsafeRawPointer, Int) {
    let weight = part.product.weight
    let source = Rows(weight)
    if weight.dtype == part.direct { return (source.row(first), source.stride) }
    for o in Range(uncheckedBounds: (0, count)) {
      let to = memory + (part.expandedAt &+ o &* part.rowBytes)
      if part.direct == .f32 {
        loadFloats(
          weight.dtype, source.row(first &+ o), nil, 1, part.inputs, to: to.assumingMemoryBound(to: Float.self),
          context.kernels)
      } else {
        source.expand(first &+ o, to: to.assumingMemoryBound(to: UInt16.self), context.kernels)
      }
    }
    return (UnsafeRawPointer(memory + part.expandedAt), part.rowBytes)
  }
}
