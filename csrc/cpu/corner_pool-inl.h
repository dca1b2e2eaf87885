// Loop bodies of corner_pool, compiled once per instruction set (cpu/foreach_isa.h).
//
// Neighbouring lines are the lanes of vectors: `width` of them, element i of the walk in the row at i * step (negative
// if the walk is from the last element to the first). Where the lines are contiguous themselves (the horizontal
// directions of NCHW), 16 of them are transposed into a tile and walked there. Sums add from the end of the walk, one
// by one, so every instruction set gives the same bits.

#include "cpu/transpose-inl.h"

// f(std::integral_constant<int, lanes>, x) over [0, width).
template <typename T, typename F>
__attribute__((always_inline)) inline void for_lanes(int64_t width, const F& f) {
  constexpr int full = full_lanes<T>;
  int64_t x = 0;
  for (; x + full <= width; x += full) f(std::integral_constant<int, full>{}, x);
  int rest = static_cast<int>(width - x);  // an int, which tells the compiler that there are few
  if constexpr (full > 4) {
    for (; rest >= 4; rest -= 4, x += 4) f(std::integral_constant<int, 4>{}, x);
  }
  for (; rest > 0; --rest, ++x) f(std::integral_constant<int, 1>{}, x);
}

// takes_over, lane by lane.
template <typename V>
__attribute__((always_inline)) inline auto taken_over(V later, V before) {
  return (later >= before) | (later != later);
}

// Integers of another width, by halving or doubling steps, for which there are instructions; the compiler takes a
// longer way lane by lane.
template <typename To, int lanes, typename From>
__attribute__((always_inline)) inline Vec<To, lanes> resized(Vec<From, lanes> v) {
  if constexpr (sizeof(From) == sizeof(To)) {
    return v;
  } else if constexpr (sizeof(From) > sizeof(To)) {
    typedef std::conditional_t<sizeof(From) == 8, int32_t, std::conditional_t<sizeof(From) == 4, int16_t, int8_t>>
        Narrow;
    return resized<To, lanes, Narrow>(__builtin_convertvector(v, Vec<Narrow, lanes>));
  } else {
    typedef std::conditional_t<sizeof(From) == 1, int16_t, std::conditional_t<sizeof(From) == 2, int32_t, int64_t>>
        Wide;
    return resized<To, lanes, Wide>(__builtin_convertvector(v, Vec<Wide, lanes>));
  }
}

template <typename T>
inline void fill_row(T* row, int64_t width, T value) {
  for (int64_t x = 0; x < width; ++x) row[x] = value;
}

// Rows that one vector of lines goes through before its neighbours do: what is carried stays in a register for so long,
// and memory is still read in as many streams only.
constexpr int64_t kRowsAtOnce = 8;

// out = the running maximum; `best` [width] carries it.
template <typename T, typename S>
void carry_maximum(const S* in, int64_t step, int64_t length, int64_t width, T* best, S* out) {
  for (int64_t i = 0; i < length; i += kRowsAtOnce) {
    const int64_t rows = length - i < kRowsAtOnce ? length - i : kRowsAtOnce;
    for_lanes<T>(
        width, CVOPS_INLINED(auto n, int64_t x) {
          constexpr int lanes = n;
          const S* from = in + i * step + x;
          S* to = out + i * step + x;
          auto held = load<T, lanes>(best + x);
          for (int64_t k = 0; k < rows; ++k, from += step, to += step) {
            const auto value = load_as<T, lanes>(from);
            held = taken_over(value, held) ? value : held;
            store_as<T, lanes>(to, held);
          }
          store<T, lanes>(best + x, held);
        });
  }
}

// out = values at the place of the running maximum of `in`; `best` and `held` [width] carry the two.
template <typename T, typename S>
void carry_values(const S* in, const S* values, int64_t step, int64_t length, int64_t width, T* best, T* held, S* out) {
  for (int64_t i = 0; i < length; i += kRowsAtOnce) {
    const int64_t rows = length - i < kRowsAtOnce ? length - i : kRowsAtOnce;
    for_lanes<T>(
        width, CVOPS_INLINED(auto n, int64_t x) {
          constexpr int lanes = n;
          const S *from = in + i * step + x, *moved = values + i * step + x;
          S* to = out + i * step + x;
          auto largest = load<T, lanes>(best + x), its = load<T, lanes>(held + x);
          for (int64_t k = 0; k < rows; ++k, from += step, moved += step, to += step) {
            const auto value = load_as<T, lanes>(from);
            const auto record = taken_over(value, largest);
            largest = record ? value : largest;
            its = record ? load_as<T, lanes>(moved) : its;
            store_as<T, lanes>(to, its);
          }
          store<T, lanes>(best + x, largest);
          store<T, lanes>(held + x, its);
        });
  }
}

// records [length][width] = -1 where an element takes over, 0 elsewhere.
template <typename T, typename S>
void mark_records(const S* in, int64_t step, int64_t length, int64_t width, T* best, int8_t* records) {
  typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> I;
  for (int64_t i = 0; i < length; i += kRowsAtOnce) {
    const int64_t rows = length - i < kRowsAtOnce ? length - i : kRowsAtOnce;
    for_lanes<T>(
        width, CVOPS_INLINED(auto n, int64_t x) {
          constexpr int lanes = n;
          const S* from = in + i * step + x;
          int8_t* to = records + i * width + x;
          auto held = load<T, lanes>(best + x);
          for (int64_t k = 0; k < rows; ++k, from += step, to += width) {
            const auto value = load_as<T, lanes>(from);
            const auto record = taken_over(value, held);
            held = record ? value : held;
            store<int8_t, lanes>(to, resized<int8_t, lanes, I>((Vec<I, lanes>)record));
          }
          store<T, lanes>(best + x, held);
        });
  }
}

// out at a record = the sum of grad from there to the next record, 0 elsewhere; from the end of the walk to its start.
// `sum` [width] carries what has found no record yet.
template <bool saturate, typename T, typename S>
void sum_to_records(const S* grad, int64_t step, int64_t length, int64_t width, const int8_t* records, T* sum, S* out) {
  typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> I;
  for (int64_t left = length; left > 0; left -= kRowsAtOnce) {
    const int64_t rows = left < kRowsAtOnce ? left : kRowsAtOnce;
    for_lanes<T>(
        width, CVOPS_INLINED(auto n, int64_t x) {
          constexpr int lanes = n;
          const S* from = grad + (left - 1) * step + x;
          const int8_t* mark = records + (left - 1) * width + x;
          S* to = out + (left - 1) * step + x;
          auto total = load<T, lanes>(sum + x);
          for (int64_t k = 0; k < rows; ++k, from -= step, mark -= width, to -= step) {
            total += load_as<T, lanes>(from);
            const auto record = resized<I, lanes, int8_t>(load<int8_t, lanes>(mark)) != 0;
            store_gradient<saturate, T, lanes>(to, record ? total : Vec<T, lanes>{});
            total = record ? Vec<T, lanes>{} : total;
          }
          store<T, lanes>(sum + x, total);
        });
  }
}

// Columns: first elements of the walk at in and out. `scratch` is [2][width].
template <typename T, typename S>
void pool_columns(const S* in, int64_t step, int64_t length, int64_t width, T* scratch, S* out) {
  fill_row(scratch, width, static_cast<T>(-__builtin_inf()));
  carry_maximum(in, step, length, width, scratch, out);
}

template <typename T, typename S>
void gather_columns(const S* values, const S* in, int64_t step, int64_t length, int64_t width, T* scratch, S* out) {
  fill_row(scratch, width, static_cast<T>(-__builtin_inf()));
  carry_values(in, values, step, length, width, scratch, scratch + width, out);
}

template <typename T, typename S>
void spread_columns(
    const S* grad, const S* in, int64_t step, int64_t length, int64_t width, T* scratch, int8_t* records, S* out) {
  fill_row(scratch, width, static_cast<T>(-__builtin_inf()));
  mark_records(in, step, length, width, scratch, records);
  fill_row(scratch, width, T(0));
  sum_to_records<true>(grad, step, length, width, static_cast<const int8_t*>(records), scratch, out);
}

// A piece of a walk along rows: `n` elements from x of the row on; `first` is the index in the tile of the first one.
struct RowPiece {
  int64_t x, n, first, step;
};
inline RowPiece piece_of(int64_t done, int64_t length, bool reverse, int64_t chunk) {
  const int64_t n = length - done < chunk ? length - done : chunk;
  if (reverse) return {length - done - n, n, (n - 1) * 16, -16};
  return {done, n, 0, 16};
}

// Rows: up to 16 of `length` elements, one after another. `scratch` is [2][16], then a tile of [chunk][16]; another for
// gather_rows.
template <typename T, typename S>
void pool_rows(const S* in, int64_t rows, int64_t length, bool reverse, int64_t chunk, T* scratch, S* out) {
  T* const tile = scratch + 32;
  fill_row(scratch, 16, static_cast<T>(-__builtin_inf()));
  for (int64_t done = 0; done < length; done += chunk) {
    const RowPiece p = piece_of(done, length, reverse, chunk);
    pack_window(in + p.x, length, rows, p.n, tile);
    carry_maximum(static_cast<const T*>(tile) + p.first, p.step, p.n, 16, scratch, tile + p.first);
    unpack_window<false>(static_cast<const T*>(tile), rows, p.n, out + p.x, length);
  }
}

template <typename T, typename S>
void gather_rows(
    const S* values, const S* in, int64_t rows, int64_t length, bool reverse, int64_t chunk, T* scratch, S* out) {
  T* const tile = scratch + 32;
  T* const value_tile = tile + 16 * chunk;
  fill_row(scratch, 16, static_cast<T>(-__builtin_inf()));
  for (int64_t done = 0; done < length; done += chunk) {
    const RowPiece p = piece_of(done, length, reverse, chunk);
    pack_window(in + p.x, length, rows, p.n, tile);
    pack_window(values + p.x, length, rows, p.n, value_tile);
    carry_values(static_cast<const T*>(tile) + p.first, static_cast<const T*>(value_tile) + p.first, p.step, p.n, 16,
        scratch, scratch + 16, value_tile + p.first);
    unpack_window<false>(static_cast<const T*>(value_tile), rows, p.n, out + p.x, length);
  }
}

template <typename T, typename S>
void spread_rows(const S* grad, const S* in, int64_t rows, int64_t length, bool reverse, int64_t chunk, T* scratch,
    int8_t* records, S* out) {
  T* const tile = scratch + 32;
  fill_row(scratch, 16, static_cast<T>(-__builtin_inf()));
  for (int64_t done = 0; done < length; done += chunk) {
    const RowPiece p = piece_of(done, length, reverse, chunk);
    pack_window(in + p.x, length, rows, p.n, tile);
    mark_records(static_cast<const T*>(tile) + p.first, p.step, p.n, 16, scratch, records + done * 16);
  }
  fill_row(scratch, 16, T(0));
  for (int64_t done = (length - 1) / chunk * chunk; done >= 0; done -= chunk) {
    const RowPiece p = piece_of(done, length, reverse, chunk);
    pack_window(grad + p.x, length, rows, p.n, tile);
    sum_to_records<false>(static_cast<const T*>(tile) + p.first, p.step, p.n, 16,
        static_cast<const int8_t*>(records + done * 16), scratch, tile + p.first);
    unpack_window<true>(static_cast<const T*>(tile), rows, p.n, out + p.x, length);
  }
}
