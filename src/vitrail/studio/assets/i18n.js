// Both languages side by side: a text is missing in both or in none.
const TEXTS = {
  create: ["Create", "创作"], gallery: ["Gallery", "图库"], edit: ["Edit", "编辑"], plot: ["Compare settings", "参数对照"],
  walk: ["Walk", "渐变"], models: ["Models", "模型"], rate: ["Rate", "盲评"],
  prompt: ["What should the picture show?", "想画什么？"], example: ["For example", "例如"], style: ["Style", "风格"],
  anyStyle: ["model's choice", "由模型决定"], count: ["Pictures", "张数"], seed: ["Seed", "种子"], random: ["random", "随机"], dice: ["New random seed", "换一个随机种子"],
  advanced: ["All settings", "全部设置"], model: ["Model", "模型"], go: ["Create", "生成"], size: ["Enlarge", "放大"],
  hint: ["Say what you want to see, then press Create. Ctrl+Enter does the same.", "写下想看到的画面，然后点“生成”，或按 Ctrl+Enter。"],
  dropHint: ["Drop any generated picture here: its settings fill the form.", "把任何生成的图片拖到这里，即可填入它的设置。"],
  queue: ["Queue", "队列"], idle: ["Nothing is waiting.", "没有等待中的任务。"], cancel: ["Cancel", "取消"], up: ["Move up", "上移"],
  queued: ["waiting", "等待中"], running: ["drawing", "生成中"], succeeded: ["done", "完成"], failed: ["failed", "失败"], cancelled: ["cancelled", "已取消"],
  left: ["s left", "秒后完成"], useInput: ["Use as input", "作为输入"], vary: ["Vary", "变体"], upscale: ["Upscale", "放大"], reuse: ["Reuse settings", "沿用设置"],
  how: ["How it was made", "制作信息"], star: ["Favourite", "收藏"], download: ["Download", "下载"], delete: ["Delete", "删除"], sure: ["Delete this picture for good?", "永久删除这张图片？"],
  search: ["Search prompts", "搜索提示词"], onlyStar: ["Favourites", "收藏"], more: ["Show more", "显示更多"], none: ["No picture yet. Make one under Create.", "还没有图片，去“创作”画一张吧。"],
  close: ["Close", "关闭"], compare: ["Compare two", "对比两张"], pickTwo: ["Pick two pictures.", "请选两张图片。"],
  choose: ["Choose a picture", "选择图片"], img2img: ["Redraw", "重画"], inpaint: ["Paint a part anew", "局部重画"], outpaint: ["Extend", "向外扩画"], repair: ["Repair a photograph", "修复照片"],
  brush: ["Brush size (keys [ and ])", "画笔大小（按键 [ 和 ]）"], undo: ["Undo (Ctrl+Z)", "撤销（Ctrl+Z）"], clear: ["Clear", "清空"], strength: ["How much may change", "改动程度"],
  run: ["Start", "开始"], pixels: ["Pixels beyond each edge", "每边扩展像素"], what: ["What to do", "要做什么"], needPicture: ["Choose a picture first, or use one of the gallery.", "请先选择图片，或使用图库中的图片。"],
  paintFirst: ["Paint over the part that should change.", "请涂抹要改动的部分。"], axisX: ["Across", "横轴"], axisY: ["Down", "纵轴"], values: ["Values, with commas between", "取值，用逗号分隔"],
  from: ["From", "从"], to: ["To", "到"], frames: ["Pictures on the way", "帧数"], place: ["Place on the way", "途中位置"],
  licence: ["Licence", "许可证"], source: ["Source", "来源"], size2: ["Size", "大小"], here: ["here", "已安装"], fetch: ["can be fetched with", "获取命令"],
  rateHint: ["Which picture fits the words better? Keys ← → and ↓ for a tie. Who made which stays hidden.", "哪张图更符合文字？按 ← → 选择，↓ 表示平局。来源保持隐藏。"],
  leftOne: ["Left", "左边"], rightOne: ["Right", "右边"], tie: ["Neither", "不分上下"], scores: ["Scores", "得分"], csv: ["Download CSV", "下载 CSV"], interval: ["95 % interval", "95% 区间"],
  needPairs: ["Needs pictures of the same words from two models. Create some with both.", "需要两个模型对同样文字的图片，请先各生成一些。"], strengthLog: ["Strength", "强度"], votes: ["Votes", "票数"],
  filled: ["Settings taken from the picture", "已填入图片的设置"], theme: ["Light or dark", "浅色或深色"], lost: ["Connection lost; trying again", "连接中断，正在重试"],
};
const stored = () => { try { return localStorage.getItem("vitrail.lang"); } catch { return null; } };
const asked = new URLSearchParams(location.search).get("lang");
export let lang = ["en", "zh"].find((l) => l === (stored() ?? asked)) ?? (navigator.language.startsWith("zh") ? "zh" : "en");
export const t = (key) => TEXTS[key][lang === "zh" ? 1 : 0];
export function setLang(next) { lang = next; try { localStorage.setItem("vitrail.lang", next); } catch { /* private window */ } }
export const EXAMPLES = {
  en: ["a cat sitting in a garden", "a red apple", "night sky over a city", "a smiling sun", "a blue heart", "an owl reading"],
  zh: ["一只猫坐在花园里", "红苹果", "城市夜景", "微笑的太阳", "蓝色的心", "看书的猫头鹰"],
};
