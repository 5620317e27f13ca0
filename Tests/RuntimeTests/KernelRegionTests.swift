// Kernels run between `enter` and `leave` on every thread, and a nested region does not end the outer one.
import Synchronization
import TamisKernels
import TamisRuntime
import TamisShims
import TamisTestSupport
import Testing

private let entered = Atomic<Int>(0)
private let left = Atomic<Int>(0)

@Suite(.serialized) struct KernelRegionTests {
  private func makeTable() -> UnsafeMutablePointer<tk_table> {
    let table = UnsafeMutablePointer<tk_table>.allocate(capacity: 1)
    table.initialize(to: tk_table_portable().pointee)
    table.pointee.enter = { entered.wrappingAdd(1, ordering: .relaxed) }
    table.pointee.leave = { left.wrappingAdd(1, ordering: .relaxed) }
    entered.store(0, ordering: .relaxed)
    left.store(0, ordering: .relaxed)
    return table
  }

  private func counts() -> [Int] { [entered.load(ordering: .relaxed), left.load(ordering: .relaxed)] }

  @Test func nestedRegionOfTheSameTableIsOne() {
    let table = makeTable()
    defer { table.deallocate() }
    let outer = KernelRegion.enter(table)
    let inner = KernelRegion.enter(table)
    KernelRegion.leave(table, outer: inner)
    #expect(counts() == [1, 0])
    KernelRegion.leave(table, outer: outer)
    #expect(counts() == [1, 1])
    #expect(tamis_shims_entered() == nil)
  }

  @Test func outerTableIsEnteredAgain() {
    let table = makeTable()
    defer { table.deallocate() }
    let other = UnsafeMutablePointer<tk_table>.allocate(capacity: 1)
    other.initialize(to: tk_table_portable().pointee)
    defer { other.deallocate() }
    let outer = KernelRegion.enter(table)
    let inner = KernelRegion.enter(other)
    #expect(tamis_shims_entered() == UnsafeRawPointer(other))
    KernelRegion.leave(other, outer: inner)
    #expect(tamis_shims_entered() == UnsafeRawPointer(table))
    #expect(counts() == [2, 0])
    KernelRegion.leave(table, outer: outer)
    #expect(counts() == [2, 1])
  }

  @Test func bodiesRunInside() throws {
    let context = try makeContext(threads: 3)
    let table = UnsafeRawPointer(context.kernels)
    let outside = Atomic<Int>(0)
    for count in [1, 50] {
      context.parallel(count: count, workers: 3) { _, _ in
        if tamis_shims_entered() != table { outside.wrappingAdd(1, ordering: .relaxed) }
        context.parallel(count: 2, workers: 3) { _, _ in }
        if tamis_shims_entered() != table { outside.wrappingAdd(1, ordering: .relaxed) }
      }
    }
    let inside = try context.run { tamis_shims_entered() == table }
    #expect(inside)
    #expect(outside.load(ordering: .relaxed) == 0)
    #expect(tamis_shims_entered() == nil)
  }
}
