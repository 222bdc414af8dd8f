package perf

import "math"

// median of sorted values.
func median(v []float64) float64 {
	n := len(v)
	if n == 0 {
		return math.NaN()
	}
	if n%2 == 1 {
		return v[n/2]
	}
	return (v[n/2-1] + v[n/2]) / 2
}

// interval is where the true median lies with 95 % confidence, whatever the
// distribution: between the k-th least and the k-th most of the sorted values.
// Fewer than six values have none; then it is their range, and sure is false.
func interval(v []float64) (low, high float64, sure bool) {
	n := len(v)
	if n == 0 {
		return math.NaN(), math.NaN(), false
	}
	k := 0
	tail := 0.0 // P(binomial(n, 1/2) <= k-1)
	for i := range n / 2 {
		tail += choose(n, i) * math.Pow(0.5, float64(n))
		if 1-2*tail < 0.95 {
			break
		}
		k = i + 1
	}
	if k == 0 {
		return v[0], v[n-1], false
	}
	return v[k-1], v[n-k], true
}

func choose(n, k int) float64 {
	c := 1.0
	for i := range k {
		c = c * float64(n-i) / float64(i+1)
	}
	return c
}
