module throughline.test/http2

go 1.26.0

require (
	golang.org/x/net v0.62.0
	throughline.test/chain v0.0.0
)

require golang.org/x/text v0.43.0 // indirect

replace throughline.test/chain => ../chain
