// Two images of a scene on top of each other, of which a slider shows the left and the right part, and an overlay of trust.

import { request } from "./api.js";

const { Map, View } = ol;

// What is generated takes seconds a tile. Few of those are asked for at a time, so that the connections are free for the base image.
class Turns {
  constructor(count) {
    this.free = count;
    this.waiting = [];
  }

  async take() {
    if (this.free > 0) this.free -= 1;
    else await new Promise((resolve) => this.waiting.push(resolve));
  }

  give() {
    const next = this.waiting.pop(); // what was asked for last is what is looked at now
    if (next) next();
    else this.free += 1;
  }
}

const quick = new Turns(4);
const slow = new Turns(1);

export class Viewer {
  constructor(target, failed, busy) {
    this.failed = failed;
    this.busy = busy; // is told how many tiles are being loaded
    this.loading = 0;
    this.shown = 0;
    this.share = 0.5;
    this.map = new Map({ target, layers: [], controls: ol.control.defaults.defaults({ attribution: false, rotate: false }) });
    this.left = this.right = this.trust = null;
  }

  open(scene) {
    this.scene = scene;
    const extent = [0, -scene.height, scene.width, 0];
    this.projection = new ol.proj.Projection({ code: "perigee-pixels", units: "pixels", extent });
    const count = scene.levels.length;
    this.grid = new ol.tilegrid.TileGrid({
      extent, origin: [0, 0], tileSize: scene.tile_side, resolutions: scene.levels.map((_, level) => 2 ** (count - 1 - level)),
    });
    this.fine = new ol.tilegrid.TileGrid({ extent, origin: [0, 0], tileSize: scene.tile_side, resolutions: [1] });
    this.map.setView(new View({
      projection: this.projection, extent, minResolution: 1 / 16, maxResolution: 2 ** count * 2, constrainOnlyCenter: true,
      center: [scene.width / 2, -scene.height / 2], showFullExtent: true,
    }));
    this.whole();
  }

  async load(tile, address, turns, shown) {
    this.busy(++this.loading);
    await turns.take();
    try {
      if (shown !== this.shown) throw new DOMException("another view is shown", "AbortError");
      const blob = await (await request(address)).blob();
      const image = tile.getImage();
      image.src = URL.createObjectURL(blob);
      image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
    } catch (error) {
      tile.setState(3); // an error
      if (error.name !== "AbortError") this.failed(error);
    } finally {
      turns.give();
      this.busy(--this.loading);
    }
  }

  layer(url, turns, grid = this.grid, more = {}) {
    const top = grid.getMaxZoom();
    const shown = this.shown;
    const source = new ol.source.TileImage({
      projection: this.projection, tileGrid: grid, interpolate: false, wrapX: false, transition: 0,
      tileUrlFunction: ([z, x, y]) => url(top - z, y, x), tileLoadFunction: (tile, address) => this.load(tile, address, turns, shown),
    });
    return new ol.layer.Tile({ source, ...more });
  }

  show(left, right, trust) {
    const base = `/scenes/${encodeURIComponent(this.scene.id)}`;
    this.shown += 1;
    const tiles = (query) => this.layer(
      (level, row, col) => `${base}/tiles/${level}/${row}/${col}.png?${query}`, query.includes("compensation=none") ? quick : slow);
    this.left = tiles(left);
    this.right = right === left ? null : tiles(right);
    this.trust = trust ? this.layer((_, row, col) => `${base}/trust/${row}/${col}.png?${trust}`, slow, this.fine, { maxResolution: 1.5 }) : null;
    const layers = [this.left, this.right, this.trust].filter(Boolean);
    for (const layer of layers.slice(1)) {
      if (!this.right) continue;
      layer.on("prerender", (event) => this.clip(event));
      layer.on("postrender", (event) => event.context.restore());
    }
    this.map.setLayers(layers);
  }

  clip(event) {
    const context = event.context;
    const [width, height] = this.map.getSize();
    const at = width * this.share;
    const corners = [[at, 0], [width, 0], [width, height], [at, height]].map((pixel) => ol.render.getRenderPixel(event, pixel));
    context.save();
    context.beginPath();
    corners.forEach(([x, y], number) => (number ? context.lineTo(x, y) : context.moveTo(x, y)));
    context.closePath();
    context.clip();
  }

  slide(share) {
    this.share = share;
    this.map.render();
  }

  whole() {
    this.map.getView().fit([0, -this.scene.height, this.scene.width, 0], { size: this.map.getSize(), padding: [8, 8, 8, 8] });
  }

  pixels() {
    this.map.getView().setResolution(1);
  }

  // Top, left, rows and columns of what is seen.
  window() {
    const [left, bottom, right, top] = this.map.getView().calculateExtent(this.map.getSize());
    const first = [Math.max(0, Math.floor(-top)), Math.max(0, Math.floor(left))];
    const last = [Math.min(this.scene.height, Math.ceil(-bottom)), Math.min(this.scene.width, Math.ceil(right))];
    return [...first, Math.max(1, last[0] - first[0]), Math.max(1, last[1] - first[1])];
  }
}

export class Footprint {
  constructor(target) {
    const land = new ol.source.Vector({ url: "/page/vendor/land-110m.json", format: new ol.format.TopoJSON({ layers: ["land"] }) });
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    this.shape = new ol.source.Vector();
    const outline = new ol.style.Stroke({ color: "#d9480f", width: 2.5 });
    this.map = new Map({
      target, controls: [], view: new View({ projection: "EPSG:4326", center: [0, 0], zoom: 1 }),
      layers: [
        new ol.layer.Vector({ source: land, style: new ol.style.Style({
          fill: new ol.style.Fill({ color: colour("--card") }), stroke: new ol.style.Stroke({ color: colour("--soft"), width: 0.7 }) }) }),
        new ol.layer.Graticule({ strokeStyle: new ol.style.Stroke({ color: colour("--line"), width: 0.5 }), showLabels: false }),
        new ol.layer.Vector({ source: this.shape, style: new ol.style.Style({
          stroke: outline, fill: new ol.style.Fill({ color: "#d9480f55" }),
          image: new ol.style.Circle({ radius: 6, stroke: outline }) }) }),
      ],
    });
  }

  show(geometry, box) {
    this.shape.clear();
    if (!geometry) return;
    const read = new ol.format.GeoJSON().readGeometry(geometry);
    const centre = ol.extent.getCenter(read.getExtent());
    this.shape.addFeatures([new ol.Feature(read), new ol.Feature(new ol.geom.Point(centre))]);
    this.map.updateSize();
    const size = Math.max(ol.extent.getWidth(read.getExtent()), 2);
    this.map.getView().fit(ol.extent.buffer(read.getExtent(), 6 * size), { maxZoom: 6 });
  }
}
