// The service of net/http behind gin's router.
package main

import (
	"flag"
	"log"
	"net/http"

	"github.com/gin-gonic/gin"

	"throughline.test/chain"
)

func main() {
	settings := chain.Settings{}
	settings.Flags()
	flag.Parse()
	transport, err := chain.NewTransport(settings.UpstreamHTTP2, settings.CA)
	if err != nil {
		log.Fatal(err)
	}
	handler, err := settings.Handler(transport)
	if err != nil {
		log.Fatal(err)
	}
	gin.SetMode(gin.ReleaseMode)
	engine := gin.New()
	engine.Use(gin.Recovery())
	engine.Any("/:kind/*next", func(ctx *gin.Context) {
		handler.ServeHTTP(ctx.Writer, ctx.Request)
	})
	log.Fatal(settings.Serve(&http.Server{Handler: engine}))
}
