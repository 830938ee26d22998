module throughline.test/http2

go 1.18

require (
	golang.org/x/net v0.1.0
	throughline.test/chain v0.0.0
)

require golang.org/x/text v0.4.0 // indirect

replace throughline.test/chain => ../chain
