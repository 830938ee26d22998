// The smallest program: says hello and ends, or ends later.
package main

import (
	"flag"
	"fmt"
	"time"
)

func main() {
	later := flag.Duration("for", 0, "how long it runs")
	flag.Parse()
	fmt.Println("hello")
	time.Sleep(*later)
}
