module throughline.test/processes

go 1.18

require throughline.test/chain v0.0.0

replace throughline.test/chain => ../chain
