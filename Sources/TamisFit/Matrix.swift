// Matrices of Double in a context's memory and the little linear algebra that a closed form takes: Cholesky factors,
// triangular systems, products with a few columns, an orthonormal basis. Every sum has one order, so equal inputs give
// equal bits. It refuses what is not positive definite, and is not meant for much more than that.

import Glibc
import TamisRuntime

final class Matrix: @unchecked Sendable {
  let rows: Int
  let columns: Int
  /// [rows, columns]
  let start: UnsafeMutablePointer<Double>
  private let bytes: Int
  private let context: Context

  /// Zeros.
  init(_ context: Context, rows: Int, columns: Int) throws(TamisError) {
    bytes = try Size.product(rows, columns, 8)
    start = try context.allocate(bytes: bytes, alignment: 64, what: "fit").assumingMemoryBound(to: Double.self)
    fill(start, rows &* columns, with: 0)
    self.rows = rows
    self.columns = columns
    self.context = context
  }

  deinit { context.release(start, bytes: bytes) }

  var count: Int { rows &* columns }

  func row(_ i: Int) -> UnsafeMutablePointer<Double> { start + i &* columns }

  /// `other` has the same sizes.
  func copy(_ other: Matrix) { times(min(count, other.count)) { i in start[i] = other.start[i] } }

  func scale(by factor: Double) { times(count) { i in start[i] *= factor } }

  // MARK: Positive definite matrices

  /// Adds `part` of the largest eigenvalue to the diagonal and puts the Cholesky factor into the lower triangle; false:
  /// there is none, and the contents are of no use.
  func factor(ridge part: Double) throws(TamisError) -> Bool {
    let largest = try largestEigenvalue()
    guard largest.isFinite, largest > 1e-30 else { return false }
    times(rows) { i in row(i)[i] += part * largest }
    var i = 0
    while i < rows {
      let mine = row(i)
      times(i) { j in mine[j] = (mine[j] - dot(mine, row(j), j)) / row(j)[j] }
      let left = mine[i] - dot(mine, mine, i)
      guard left.isFinite, left > 0 else { return false }
      mine[i] = left.squareRoot()
      i &+= 1
    }
    return true
  }

  /// By a hundred steps of power iteration from equal numbers.
  private func largestEigenvalue() throws(TamisError) -> Double {
    let vectors = try Matrix(context, rows: 2, columns: rows)
    let (from, to) = (vectors.row(0), vectors.row(1))
    fill(to, rows, with: 1)
    var length = Double(rows).squareRoot()
    for _ in 0..<100 where length > 0 {
      times(rows) { i in from[i] = to[i] / length }
      times(rows) { i in to[i] = dot(row(i), from, rows) }
      length = dot(to, to, rows).squareRoot()
    }
    return length
  }

  /// L y = b in place, this being L.
  func solve(_ b: Matrix) {
    times(rows) { i in
      times(i) { j in add(-row(i)[j], b.row(j), to: b.row(i), b.columns) }
      divide(b.row(i), by: row(i)[i], b.columns)
    }
  }

  /// L' y = b in place.
  func solveTransposed(_ b: Matrix) {
    var i = rows &- 1
    while i >= 0 {
      divide(b.row(i), by: row(i)[i], b.columns)
      times(i) { j in add(-row(i)[j], b.row(i), to: b.row(j), b.columns) }
      i &-= 1
    }
  }

  // MARK: Products

  /// to = this times `b`.
  func multiply(_ b: Matrix, to: Matrix) {
    times(rows) { i in
      fill(to.row(i), to.columns, with: 0)
      times(columns) { j in add(row(i)[j], b.row(j), to: to.row(i), b.columns) }
    }
  }

  /// to = this, transposed, times `b`.
  func multiplyTransposed(_ b: Matrix, to: Matrix) {
    fill(to.start, to.count, with: 0)
    times(rows) { i in
      times(columns) { j in add(row(i)[j], b.row(i), to: to.row(j), b.columns) }
    }
  }

  // MARK: Columns

  /// Makes the columns orthonormal, in order (Gram and Schmidt, twice); one that depends on those before it becomes a
  /// random direction.
  func orthonormalise(_ random: inout SeededRandom) {
    var c = 0
    while c < columns {
      var before = length(c)
      for _ in 0..<4 {
        for _ in 0..<2 {
          times(c) { d in subtract(d, from: c) }
        }
        let left = length(c)
        if left.isFinite, left > 1e-10 * before, left > 0 {
          times(rows) { i in row(i)[c] /= left }
          break
        }
        times(rows) { i in row(i)[c] = Double(random.normal()) }
        before = length(c)
      }
      c &+= 1
    }
  }

  private func length(_ c: Int) -> Double {
    var sum = 0.0
    times(rows) { i in sum += row(i)[c] * row(i)[c] }
    return sum.squareRoot()
  }

  private func subtract(_ d: Int, from c: Int) {
    var along = 0.0
    times(rows) { i in along += row(i)[c] * row(i)[d] }
    times(rows) { i in row(i)[c] -= along * row(i)[d] }
  }
}

/// Eight partial sums, so that the additions do not wait for each other.
private func dot(_ a: UnsafePointer<Double>, _ b: UnsafePointer<Double>, _ count: Int) -> Double {
  var sums = SIMD8<Double>(repeating: 0)
  let whole = count & ~7
  var i = 0
  while i < whole {
    sums +=
      UnsafeRawPointer(a + i).loadUnaligned(as: SIMD8<Double>.self)
      * UnsafeRawPointer(b + i).loadUnaligned(as: SIMD8<Double>.self)
    i &+= 8
  }
  var sum = sums.sum()
  while i < count {
    sum += a[i] * b[i]
    i &+= 1
  }
  return sum
}

@inline(__always)
private func add(_ factor: Double, _ from: UnsafePointer<Double>, to: UnsafeMutablePointer<Double>, _ count: Int) {
  times(count) { i in to[i] += factor * from[i] }
}

private func divide(_ numbers: UnsafeMutablePointer<Double>, by divisor: Double, _ count: Int) {
  times(count) { i in numbers[i] /= divisor }
}

/// Calls body with 0, 1, ... below `count`, which may be negative: a loop that cannot trap.
@inline(__always)
func times(_ count: Int, _ body: (Int) -> Void) {
  var i = 0
  while i < count {
    body(i)
    i &+= 1
  }
}

private func fill(_ numbers: UnsafeMutablePointer<Double>, _ count: Int, with value: Double) {
  times(count) { i in numbers[i] = value }
}
