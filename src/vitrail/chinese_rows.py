"""The table of :mod:`vitrail.chinese`: English lines and their Chinese."""

from __future__ import annotations

__all__ = ["ROWS"]

# English -> Chinese. {name} stands for any text, itself translated where it can be; {name#} for a number.
ROWS = """
{name} {value} is out of range; allowed {low#} to {high#}
    {name} 为 {value}，超出范围；允许 {low} 到 {high}
{name} {value} is out of range
    {name} 为 {value}，超出范围
{name} {value} is not a whole number; allowed {low#} to {high#}
    {name} 的值 {value} 不是整数；允许 {low} 到 {high}
{name} {value} is not a whole number
    {name} 的值 {value} 不是整数
{name} {value} is not a finite number; allowed {low#} to {high#}
    {name} 的值 {value} 不是有效数字；允许 {low} 到 {high}
{name} {value} is not a finite number
    {name} 的值 {value} 不是有效数字
{name} {value} is unknown; did you mean {near}?; allowed are {all}
    {name} {value} 不存在；您是指 {near}？可选：{all}
{name} {value} is unknown; did you mean {near}? allowed are {all}
    {name} {value} 不存在；您是指 {near}？可选：{all}
{name} {value} is unknown; allowed are {all}
    {name} {value} 不存在；可选：{all}
{name} {value} is unknown; did you mean {near}?
    {name} {value} 不存在；您是指 {near}？
{name} {value} is unknown; use one of {all}
    {name} {value} 不存在；可选：{all}
{name} {value} is unknown; use {all}
    {name} {value} 不存在；可用：{all}
{name} {value} is unknown; see {help}
    {name} {value} 不存在；参见 {help}
command {value} is unknown; did you mean {near}?
    没有命令 {value}；您是指 {near}？
command {value} is unknown; use one of {all}
    没有命令 {value}；可选：{all}
option {value} is unknown; did you mean {near}?
    没有选项 {value}；您是指 {near}？
option {value} is unknown; use one of {all}
    没有选项 {value}；可选：{all}
option {value} is unknown; see {help}
    没有选项 {value}；参见 {help}
prompt {value} names nothing that model {model} draws; did you mean {near}? it draws {all}
    提示词 {value} 中没有模型 {model} 能画的内容；您是指 {near}？它能画：{all}
prompt {value} names nothing that model {model} draws; it draws {all}
    提示词 {value} 中没有模型 {model} 能画的内容；它能画：{all}
{name} is not for model {model}, which draws in one pass; leave it out
    {name} 不适用于一步成图的模型 {model}；请去掉该设置
model {model} draws after another picture; give it as the one control condition \
(--control condition=PICTURE); given: {given}
    模型 {model} 依照另一张图片作画；请以 --control condition=图片 给出（只给这一个）；现有：{given}
control is not for model {model}, which follows no picture; leave it out
    模型 {model} 不参照图片，不能使用 control；请去掉
{place} has no autoencoder; give one with --vae
    {place} 不含自编码器（VAE）；请用 --vae 给出
{place} has no text encoder; give a whole model
    {place} 不含文本编码器；请给出完整模型
{place} is a U-Net alone; give the whole model
    {place} 只有 U-Net；请给出完整模型
{place} has weights of 8 bits beside their scales; give the file in 16 or 32 bits
    {place} 是带缩放系数的 8 位权重；请使用 16 位或 32 位的文件
the autoencoder gave NaN or infinite values; try another with --vae
    自编码器输出了 NaN 或无穷大；请用 --vae 换一个
{folder} is not the built set; run: {command}
    {folder} 不是已构建的数据集；请运行：{command}
style {value} is unknown; model {model} has no styles, leave it out
    没有风格 {value}；模型 {model} 没有风格选项，请去掉该设置
{word} is one word too many; put words that belong together in quotes; see {help}
    多出了 {word}；请用引号括住整句话；参见 {help}
Missing value for argument {flag}; see {help}
    选项 {flag} 缺少值；参见 {help}
{name} is empty; give at least one character
    {name} 为空；请至少输入一个字符
{name} is too long; allowed are {most#} characters
    {name} 过长；最多 {most} 个字符
{name} is missing; give a value for it
    缺少 {name}；请给出它的值
{name} is not a setting; did you mean {near}?
    没有设置项 {name}；您是指 {near}？
{name} is not a setting; remove it
    没有设置项 {name}；请去掉
{name} {value} is not a name; allowed are letters, digits, '.', '_', '-' and space
    {name} 的值 {value} 不是有效名称；只能用字母、数字、“.”“_”“-”和空格
{name} holds the character {code}; control characters are not allowed
    {name} 含有字符 {code}；不允许控制字符
{name} is not valid Unicode; remove the broken character
    {name} 不是有效的 Unicode 文本；请删除损坏的字符
{name} needs a start below its end, such as {example}
    {name} 的起点必须小于终点，例如 {example}
the prompt is missing; write for instance: {example}
    缺少提示词；例如：{example}
size {size} is not possible; model {model} makes {all}
    不支持尺寸 {size}；模型 {model} 可生成 {all}
sampler {name} is not for model {model}; use one of {all}
    采样方法 {name} 不适用于模型 {model}；可用：{all}
the file name says {one} and --format says {other}; leave one of them out
    文件名的格式是 {one}，而 --format 是 {other}；请去掉其中一个
device {name} is not available on this machine; use auto or cpu
    本机没有设备 {name}；请用 auto 或 cpu
no model {name}; did you mean {near}?; there are: {all} (or give a path)
    没有模型 {name}；您是指 {near}？现有：{all}（也可以给出路径）
no model {name}; there are: {all} (or give a path)
    没有模型 {name}；现有：{all}（也可以给出路径）
this installation has no default model; train one with vitrail train, or give --model
    本机没有默认模型；请用 vitrail train 训练一个，或用 --model 指定
the picture was made with model {name} (SHA-256 {hash}), which is not installed here; \
give the folder of that model with --model
    该图片由模型 {name}（SHA-256 {hash}）生成，本机没有此模型；请用 --model 给出它的文件夹
{file} holds no record of vitrail's; give a picture that vitrail generate made
    {file} 中没有 vitrail 的记录；请给出由 vitrail generate 生成的图片
{place} is not a model folder: it has no {file}
    {place} 不是模型文件夹：其中没有 {file}
there is no folder {place}; give the folder of a model
    没有文件夹 {place}；请给出模型文件夹
{file} has {size#} bytes instead of {other#}; it is damaged: get it again
    {file} 有 {size} 字节，应为 {other}；文件已损坏，请重新获取
{file} differs from its SHA-256; it is damaged or changed: get it again
    {file} 与其 SHA-256 不符；文件已损坏或被改动，请重新获取
{file} is missing; the model folder is incomplete: get it again
    缺少 {file}；模型文件夹不完整，请重新获取
cannot open {file}: {reason}; give the path of a picture file
    无法打开 {file}：{reason}；请给出图片文件的路径
{file} is not a file; give the path of a picture file
    {file} 不是文件；请给出图片文件的路径
the output path is empty or holds a NUL character; give a folder or a file name
    输出路径为空或含有 NUL 字符；请给出文件夹或文件名
cannot write {place}: the folder is read-only; choose another or change its permissions
    无法写入 {place}：文件夹只读；请换一个文件夹或修改权限
the folder {place} is read-only; choose another folder or change its permissions
    文件夹 {place} 只读；请换一个文件夹或修改权限
cannot write {place}: a part of that path is a file, not a folder
    无法写入 {place}：路径中有一部分是文件而不是文件夹
cannot write {place}: the name is too long; choose a shorter one
    无法写入 {place}：名称过长；请换一个短一些的
cannot write {place}: {reason}
    无法写入 {place}：{reason}
{place} is a file, not a folder; choose another folder
    {place} 是文件而不是文件夹；请换一个文件夹
{place} exists already; choose another name or remove it
    {place} 已存在；请换一个名称或先删除它
the job ended without a picture; its address says more
    任务结束时没有图片；详情见该任务的地址
no file can be opened now: {why}; close other programs or raise the limit
    现在无法打开文件：{why}；请关闭其他程序，或提高上限
no room left for {place}: {need#} bytes needed, {free#} free; free some space or choose another disk
    空间不足，无法写入 {place}：需要 {need} 字节，剩余 {free} 字节；请清理空间或换一个磁盘
no room left for {place}: {free#} free; free some space or choose another disk
    空间不足，无法写入 {place}：剩余 {free} 字节；请清理空间或换一个磁盘
out of memory; use fewer pictures at once (--n) or a smaller size
    内存不足；请减少每次生成的张数（--n）或缩小尺寸
not enough memory for this picture; ask for a smaller size, use --tile, or --device cpu
    内存不足，无法生成此图片；请缩小尺寸，使用 --tile，或使用 --device cpu
not enough memory for this picture ({size} more were needed); ask for a smaller size, use --tile, or \
--device cpu
    内存不足，无法生成此图片（还需要 {size}）；请缩小尺寸，使用 --tile，或使用 --device cpu
nothing to train: give a recipe file, or --data with a folder of pictures
    没有可训练的内容：请给出配方文件，或用 --data 给出图片文件夹
the folder {place} does not exist; give a folder of pictures
    文件夹 {place} 不存在；请给出图片文件夹
{place} does not exist; give a folder of pictures
    {place} 不存在；请给出图片文件夹
{place} is a file; give a folder or a .tar
    {place} 是文件；请给出文件夹或 .tar
the folder is missing; write: {example}
    缺少文件夹；写法：{example}
recipe {file} cannot be read: {reason}
    无法读取配方 {file}：{reason}
recipe {file} is not valid TOML: {reason}
    配方 {file} 不是有效的 TOML：{reason}
--set {text}: write section.key=value, for instance {example}
    --set {text}：写法为 节.键=值，例如 {example}
{place} was begun with another recipe: {keys} differ; give the same recipe, or another run folder \
(run.warm_start takes over the weights)
    {place} 是用另一份配方开始的：{keys} 不同；请用同一份配方，或换一个运行文件夹（run.warm_start 可沿用权重）
no usable picture in {place} (PNG, JPEG, WebP or GIF); {n#} files cannot be used, such as {file}: {reason}
    {place} 中没有可用的图片（PNG、JPEG、WebP 或 GIF）；有 {n} 个文件不可用，例如 {file}：{reason}
no usable picture in {place} (PNG, JPEG, WebP or GIF)
    {place} 中没有可用的图片（PNG、JPEG、WebP 或 GIF）
size is {size#}; the emoji set is built at 64, 128 or 256 pixels
    size 为 {size}；表情训练集只能按 64、128 或 256 像素构建
{place} exists and is not an emoji set; name another folder or empty it
    {place} 已存在且不是表情训练集；请换一个文件夹或清空它
the {what} is missing; write for instance: {example}
    缺少{what}；例如：{example}
cannot open {file}: {reason}; give the path of a {what}
    无法打开 {file}：{reason}；请给出{what}的路径
{file} is not a file; give the path of a {what}
    {file} 不是文件；请给出{what}的路径
model {name} is a tokenizer alone and draws nothing; give a model with a prior
    模型 {name} 只有 tokenizer，不能生成新内容；请给出带先验的模型
model {name} is of kind {kind} and has no codes; give a vq_autoencoder, or a prior with one in its folder \
tokenizer/
    模型 {name} 的类型是 {kind}，没有编码；请给出 vq_autoencoder，或在 tokenizer/ 中带有它的先验模型
model {name} reads no words; leave the prompt out
    模型 {name} 不读文字；请去掉提示词
{file} is neither a .vtl nor an .npz file of codes
    {file} 既不是 .vtl 也不是 .npz 编码文件
{file} was made with another model (SHA-256 {wanted}); {model} is {own}: \
give the model that made it with --model
    {file} 是用另一个模型（SHA-256 {wanted}）生成的；{model} 是 {own}：请用 --model 给出原来的模型
{file} does not end in .vtl; write for instance: {example}
    {file} 不以 .vtl 结尾；例如：{example}
{file} ends neither in .npz nor in .vtl; write: {example}
    {file} 既不以 .npz 也不以 .vtl 结尾；写法：{example}
{file} is damaged: its codes differ from their check; get it again
    {file} 已损坏：编码与校验值不符；请重新获取
the mask has {one} pixels and the picture {two}; make the mask of the picture's shape
    蒙版为 {one} 像素，图片为 {two} 像素；请使蒙版与图片形状一致
the mask has no white pixel: nothing is to be painted; paint white what is to go
    蒙版中没有白色像素，没有要重画的内容；请把要重画的部分涂成白色
the request has nothing to paint: give a mask, or expand for an edge
    没有要画的内容：请给出蒙版（--mask），或用 --expand 扩画
the axes are missing; write for instance: {example}
    缺少坐标轴；例如：{example}
axis {text} cannot be read; write a setting and its values: {example}
    无法读取坐标轴 {text}；写法为 设置=取值,取值：{example}
axis {name} is not a setting; use one of {all}
    没有设置 {name}；可选：{all}
axis {text} has an empty value; write for instance {example}
    坐标轴 {text} 中有空的取值；例如 {example}
x and y are both {name}; give each axis a setting of its own
    x 与 y 都是 {name}；请给两个轴各指定一个设置
a grid of {n#} pictures is too large; allowed are {most#}
    {n} 张图片的表格过大；最多 {most} 张
prompts-file {file} cannot be read: {reason}
    无法读取提示词文件 {file}：{reason}
{file} holds no prompt; write one on each line
    {file} 中没有提示词；请每行写一个
prompts-file brings the prompts; leave out the prompt and --from-record
    提示词由文件给出；请去掉提示词和 --from-record
the mask is black everywhere, so nothing may change; paint white what may
    蒙版全黑，没有可改动的部分；请把可改动处涂成白色
the mask is all black, so there is nothing to repair; paint white what is to go
    蒙版全黑，没有要修复的内容；请把要去掉的部分涂成白色
the mask leaves no pixel of the picture to go by; leave some of it black
    蒙版没有留下任何可参考的像素；请保留一部分黑色
model {name} is not on this machine yet; run: {command}
    本机还没有模型 {name}；请运行：{command}
model {name} is of kind {kind}; one that repairs photographs is a migan ({command})
    模型 {name} 的类型是 {kind}；修复照片需要 migan（{command}）
model {name} is of kind {kind}; one that enlarges photographs is a rrdb ({command})
    模型 {name} 的类型是 {kind}；放大照片需要 rrdb（{command}）
model {name} is here already: {place}; --overwrite fetches it again
    模型 {name} 已存在：{place}；用 --overwrite 重新获取
model {name} came with vitrail and is not removed
    模型 {name} 随 vitrail 附带，不会删除
the catalogue has no model {name}; did you mean {near}?
    目录中没有模型 {name}；您是指 {near}？
the catalogue has no model {name}; see {help}
    目录中没有模型 {name}；参见 {help}
the hub cannot be reached for {file}: {reason}; check the network
    无法连接模型站点获取 {file}：{reason}；请检查网络
the hub cannot be reached for {file}: {reason}; {n#} bytes are kept, run it again to go on
    无法连接模型站点获取 {file}：{reason}；已保留 {n} 字节，重新运行即可继续
{file} ended after {n#} of {all#} bytes; they are kept, run it again to go on
    {file} 在 {all} 字节中的第 {n} 字节处中断；已保留，重新运行即可继续
{name} is not for model {model}, which draws pixels; leave it out
    {name} 不适用于直接画像素的模型 {model}；请去掉
{name} is not for model {model}, which draws codes; leave it out
    {name} 不适用于编码模型 {model}；请去掉
control {text} cannot be read; write for instance {example}
    无法读取 control {text}；例如 {example}
model {name} draws {size}; what is new was drawn at {used} and enlarged
    模型 {name} 的原生尺寸为 {size}；新内容以 {used} 绘制后放大
model {name} draws codes; this needs a diffusion model, such as --model default
    模型 {name} 是编码模型；这里需要扩散模型，例如 --model default
schedule {name} is not for model {model}; use one of {all}
    噪声调度 {name} 不适用于模型 {model}；可用：{all}
a walk needs two stops or more; write for instance: {example}
    至少需要两站；例如：{example}
the picture to write is given twice; leave out --output
    输出图片给出了两次；请去掉 --output
file of codes
    编码文件
picture
    图片
mask
    蒙版
stopped
    已停止
No such file or directory
    没有这个文件或目录
Permission denied
    没有权限
Is a directory
    是一个目录
Not a directory
    不是目录
File name too long
    文件名过长
Input/output error
    读写错误
Too many levels of symbolic links
    符号链接层数过多
not a file name
    不是文件名
is not a picture that can be read; allowed are PNG, JPEG, WebP and GIF
    不是可读取的图片；支持 PNG、JPEG、WebP 和 GIF
this file is not a picture that can be read; allowed are PNG, JPEG, WebP and GIF
    这个文件不是可读取的图片；支持 PNG、JPEG、WebP 和 GIF
this file is {w#}x{h#} pixels ({m#} megapixels); allowed are {most#} megapixels, so make it smaller first
    这张图片为 {w}x{h} 像素（{m} 百万像素）；最多 {most} 百万像素，请先缩小
this file
    这个文件
{file} is not a picture that can be read; allowed are PNG, JPEG, WebP and GIF
    {file} 不是可读取的图片；支持 PNG、JPEG、WebP 和 GIF
is empty; it is not a picture
    是空文件，不是图片
{file} is empty; it is not a picture
    {file} 是空文件，不是图片
has a bad header: {reason}; the file is damaged or cut off
    文件头有误：{reason}；文件已损坏或不完整
it ends too early
    文件过早结束
no IHDR
    没有 IHDR 块
too much metadata before the pixels
    像素之前的元数据过多
too much metadata before the first frame
    首帧之前的元数据过多
too much metadata
    元数据过多
a marker is missing
    缺少标记
no frame header before the first scan
    扫描数据前没有帧头
no scan in it
    没有扫描数据
a segment of impossible length
    数据段长度不合理
no VP8L signature
    没有 VP8L 标识
no VP8 start code
    没有 VP8 起始码
no VP8 chunk
    没有 VP8 数据块
no frame in it
    没有任何一帧
is {w#}x{h#} pixels; it has no picture in it
    尺寸为 {w}x{h} 像素，其中没有图像
{file} is {w#}x{h#} pixels ({m#} megapixels); allowed are {most#} megapixels, so make it smaller first
    {file} 为 {w}x{h} 像素（{m} 百万像素）；最多 {most} 百万像素，请先缩小
is {w#}x{h#} pixels ({m#} megapixels); allowed are {most#} megapixels, so make it smaller first
    尺寸为 {w}x{h} 像素（{m} 百万像素）；最多 {most} 百万像素，请先缩小
a picture of {w#}x{h#} pixels ({m#} megapixels) is too large; allowed are {most#} megapixels
    {w}x{h} 像素（{m} 百万像素）的图片过大；最多 {most} 百万像素
a sheet of {w#}x{h#} pixels ({m#} megapixels) is too large; allowed are {most#} megapixels
    {w}x{h} 像素（{m} 百万像素）的拼图过大；最多 {most} 百万像素
cannot be decoded: {reason}; the file is damaged or cut off
    无法解码：{reason}；文件已损坏或不完整
cannot be read as a picture: {reason}; the file is damaged
    无法作为图片读取：{reason}；文件已损坏
cannot be decoded: {reason}
    无法解码：{reason}
image file is truncated
    图片文件不完整
image file is truncated ({n#} bytes not processed)
    图片文件不完整（{n} 字节未处理）
broken data stream when reading image file
    图片数据流损坏
cannot be opened: {reason}
    无法打开：{reason}
cannot be read: {reason}
    无法读取：{reason}
cannot be listed: {reason}
    无法列出内容：{reason}
cannot be looked at: {reason}
    无法查看：{reason}
is not a regular file
    不是普通文件
is a pipe, socket or device, not a file
    是管道、套接字或设备，不是文件
is cut off: {have#} of {all#} bytes are there
    文件不完整：{all} 字节中只有 {have} 字节
has {n#} bytes; allowed are {most#}
    有 {n} 字节；最多允许 {most}
claims {n#} bytes, more than the archive holds
    声称有 {n} 字节，超过压缩包的实际大小
a symbolic link is not followed; put the file itself into the folder
    不会跟随符号链接；请把文件本身放进文件夹
{format} is not opened; convert it to PNG, JPEG or WebP
    不支持 {format}；请转换为 PNG、JPEG 或 WebP
{format} is not opened; convert it to PNG or JPEG
    不支持 {format}；请转换为 PNG 或 JPEG
a compressed archive is not opened; unpack it, or make it a plain .tar
    不支持压缩归档；请先解压，或改为普通 .tar
is damaged after {n#} pictures: {reason}
    在第 {n} 张图片之后损坏：{reason}
a second picture of sample {name}
    样本 {name} 的第二张图片
is not UTF-8 text; save it as UTF-8
    不是 UTF-8 文本；请另存为 UTF-8
{key} must be a text or a list of texts
    {key} 必须是文本或文本列表
'style' must be a text
    “style”必须是文本
is not JSON: nested too deep
    不是 JSON：嵌套过深
is not JSON: {reason}
    不是 JSON：{reason}
is not a JSON object
    不是 JSON 对象
has no 'file_name' text
    没有“file_name”文本
'file_name' is not a file name
    “file_name”不是文件名
names {name}, which leads outside the folder
    指向文件夹之外的 {name}
names {name}, which is not a picture in this folder
    指向 {name}，但文件夹中没有这张图片
a second line about {name}; its caption was added to the first
    关于 {name} 的第二行；其说明文字已并入第一行
a line of {n#} bytes; allowed are {most#}
    一行有 {n} 字节；最多允许 {most}
{name} is out of range; allowed {low#} to {high#}
    {name} 超出范围；允许 {low} 到 {high}
{name} is not a whole number; allowed {low#} to {high#}
    {name} 不是整数；允许 {low} 到 {high}
{name} is not a finite number; allowed {low#} to {high#}
    {name} 不是有效数字；允许 {low} 到 {high}
{name} is unknown; allowed are {all}
    {name} 不存在；可选：{all}
{name} is unknown; did you mean {near}?; allowed are {all}
    {name} 不存在；您是指 {near}？可选：{all}
one of the names is not a setting; did you mean {near}?
    有一个名称不是设置项；您是指 {near}？
one of the names is not a setting; remove it
    有一个名称不是设置项；请去掉
there is no model of this name; there are: {all}
    没有这个名称的模型；现有：{all}
there is no such job; it may have been forgotten
    没有这个任务；可能已被清除
there is no gallery in {folder}; give another --folder, or --database
    {folder} 中没有图库；请用 --folder 或 --database 指定
the picture's id is missing; see vitrail gallery search
    缺少图片编号；参见 vitrail gallery search
the folder to write into is missing; add -o FOLDER
    缺少要写入的文件夹；请加 -o FOLDER
the file of this picture is gone; run: vitrail gallery check --repair
    该图片的文件已丢失；请运行：vitrail gallery check --repair
the file of this picture is damaged; run: vitrail gallery check
    该图片的文件已损坏；请运行：vitrail gallery check
the picture to go on from is not there; begin again without 'before'
    续页所依据的图片已不存在；请去掉 before 重新开始
databases of kind {kind} are not supported; use postgresql://user@host/name, or leave it out for a file
    不支持 {kind} 数据库；请使用 postgresql://user@host/name，或不填以使用文件
the database address cannot be read; write postgresql://user@host/name
    无法识别数据库地址；请写作 postgresql://user@host/name
the database {name} refused: {cause}; free some space
    数据库 {name} 拒绝操作：{cause}；请释放磁盘空间
the database {name} refused: {cause}; free some space, or see whether its disk is whole
    数据库 {name} 拒绝操作：{cause}；请释放磁盘空间，或检查磁盘是否完好
the database {name} refused: {cause}; let this user write the file and its folder, or choose another folder
    数据库 {name} 拒绝操作：{cause}；请让当前用户可以写入该文件及其文件夹，或选择其他文件夹
the database {name} refused: {cause}; put a copy back, or move it away and run: vitrail gallery repair
    数据库 {name} 拒绝操作：{cause}；请放回该文件的备份，或将其移走后运行：vitrail gallery repair
the database {name} refused: {cause}; see whether its disk or server is there
    数据库 {name} 拒绝操作：{cause}；请检查其磁盘或服务器
the database {name} is away: {cause}; see whether its server is there
    数据库 {name} 暂不可用：{cause}；请检查其服务器
there is no such picture; it may have been deleted
    没有这张图片；可能已被删除
the body is not valid JSON; numbers have at most {most#} digits
    请求体不是有效的 JSON；数字最多 {most} 位
the content of a file is not base64
    文件内容不是 base64
pictures are not fetched from addresses; send the content as base64
    不会从网址获取图片；请以 base64 发送内容
the body is too large; allowed are {most#} bytes here
    请求体过大；此处最多 {most} 字节
the token is missing or wrong
    缺少令牌或令牌错误
another page may not use this server; see --allow-origin
    其他网页不能使用本服务器；参见 --allow-origin
this server does not answer to that host; see --allow-host
    本服务器不以该名称提供服务；参见 --allow-host
{have#} jobs wait already, and {most#} are allowed; try again later
    已有 {have} 个任务在排队，最多 {most} 个；请稍后再试
the body's length is said in two ways
    请求体的长度有两种说法
the server's database does not answer; ask again in a moment
    服务器的数据库没有响应；请稍后再试
the server cannot write to its disk or database; free some space
    服务器无法写入磁盘或数据库；请腾出空间
this idempotency key was used for another request; use a fresh key for each
    该幂等键已用于另一个请求；每个请求请用新的键
size cannot be read; write auto, or width and height such as {size}
    无法识别 size；请写 auto，或宽和高，例如 {size}
{name} is given several times; send one file
    {name} 给出了多个；请只发送一个文件
{name} is missing; send one file
    缺少 {name}；请发送一个文件
scripts are not run here; leave script_name out
    此处不运行脚本；请去掉 script_name
{names} cannot be used; /openapi.json says what is allowed
    {names} 无法使用；可用的值见 /openapi.json
no {kind} is called {name}; put its file into {place}, or name folders of models in {variable} or {file}
    没有名为 {name} 的 {kind}；请把文件放入 {place}，或在 {variable} 或 {file} 中指定模型文件夹
no {kind} is called {name}; there is {near}
    没有名为 {name} 的 {kind}；现有 {near}
no {kind} is called {name}; there are {count#}, such as {one}
    没有名为 {name} 的 {kind}；共有 {count} 个，例如 {one}
several files are called {name} ({kind}): {all}; give the whole name
    有多个文件名为 {name}（{kind}）：{all}；请给出完整名称
there is no {kind} at {place}; give the path of its file
    {place} 处没有 {kind}；请给出文件路径
{file} is no {kind}; use one of {all} files
    {file} 不是 {kind}；请使用 {all} 文件
none of the {total#} layers of the LoRA {name} is in this model; it seems to be for {family}
    LoRA {name} 的 {total} 层都不在该模型中；它似乎用于 {family}
none of the {total#} layers of the LoRA {name} is in this model ({n#} are, with other sizes); \
it seems to be for {family}
    LoRA {name} 的 {total} 层都不适合该模型（其中 {n} 层存在但尺寸不同）；它似乎用于 {family}
the LoRA {name} seems to be for {family}; this model is {other}: choose a LoRA of the same family
    LoRA {name} 似乎用于 {family}；该模型为 {other}：请选择同类的 LoRA
a model of an unknown kind
    未知类型的模型
{model} has no styles; say {style} in the prompt instead
    {model} 没有风格；请在提示词中写 {style}
clip skip is {n#}; the text encoder has {layers#} layers
    clip skip 为 {n}；文本编码器只有 {layers} 层
{file} is a LoRA; write <lora:NAME:1> in the prompt
    {file} 是 LoRA；请在提示词中写 <lora:名称:1>
{file} is a ControlNet; give it as one
    {file} 是 ControlNet；请用 --control 给出
{file} is Stable Diffusion 3, which is not supported
    {file} 是 Stable Diffusion 3，暂不支持
{file} is FLUX, which is not supported
    {file} 是 FLUX，暂不支持
{file} is a U-Net of diffusers alone; give the whole folder
    {file} 只是 diffusers 的 U-Net；请给出整个文件夹
{file} is a U-Net alone; give the whole model
    {file} 只是 U-Net；请给出完整模型
{file} is an autoencoder alone; give it with --vae
    {file} 只是自编码器；请用 --vae 给出
{file} is a text encoder alone; give the whole model
    {file} 只是文本编码器；请给出完整模型
{file} is a textual inversion; name it in the prompt
    {file} 是文本反演（embedding）；请在提示词中写它的名称
{file} is not UTF-8 text; save it as UTF-8
    {file} 不是 UTF-8 文本；请另存为 UTF-8
it is not valid JSON
    不是有效的 JSON
expand names {side} twice; give each side once
    expand 中 {side} 出现两次；每个方向只能给出一次
expand {value} cannot be read; write for instance {one} or {other} (sides: {all})
    无法识别 expand {value}；例如 {one} 或 {other}（方向：{all}）
control {value} cannot be read; write for instance {example}
    无法识别 control {value}；例如 {example}
{word} is not in the prompt, so nothing can replace it
    提示词中没有 {word}，无法替换
{place} is a whole pipeline of diffusers; give its subfolder {all} \
(Stable Diffusion needs no converting: --model takes the folder)
    {place} 是完整的 diffusers 管线；请给出其子文件夹 {all}（Stable Diffusion 无需转换，--model 可直接使用）
{file} holds a whole diffusion model, which is used as it is (--model FILE); only autoencoders and token \
transformers convert
    {file} 是完整的扩散模型，可直接使用（--model 文件）；只有自编码器和 token transformer 需要转换
{file} is not a checkpoint; vitrail reads files that torch.save wrote, and safetensors
    {file} 不是检查点；vitrail 可读取 torch.save 写出的文件和 safetensors
cannot open {file}: {reason}
    无法打开 {file}：{reason}
{file} is not an autoencoder of taming-transformers or latent-diffusion (no {name})
    {file} 不是 taming-transformers 或 latent-diffusion 的自编码器（缺少 {name}）
no model {name} in {place}; see vitrail models list
    {place} 中没有模型 {name}；参见 vitrail models list
{name} is not the name of a model; see vitrail models list
    {name} 不是模型名称；参见 vitrail models list
the model's name is missing; see {help}
    缺少模型名称；参见 {help}
{name} is a path or an address; pull takes names of {help}, and --model takes a file or folder where it lies
    {name} 是路径或网址；pull 只接受 {help} 中的名称，本机上的文件或文件夹请直接用 --model 指定
{place} is a pipeline of diffusers, which cannot be used for this; give a model of vitrail's
    {place} 是 diffusers 管线，不能用于此处；请给出 vitrail 的模型
{place} is not a model folder: it has no {file}; it is a part of {whole}: give the whole
    {place} 不是模型文件夹：其中没有 {file}；它是 {whole} 的一部分：请给出整个文件夹
{place} is not a model folder: it has no {file}; did you mean {near}?
    {place} 不是模型文件夹：其中没有 {file}；您是指 {near}？
{file} is a checkpoint, which cannot be used for this as it is; vitrail models convert makes a model of an \
autoencoder or a token transformer
    {file} 是检查点，不能直接用于此处；vitrail models convert 可将自编码器或 token transformer 转换为模型
{file} is not a model; there are: {all} (or give a model's folder, or a checkpoint: {endings})
    {file} 不是模型；现有：{all}（也可以给出模型文件夹或检查点：{endings}）
{file} is not a model; allowed are {all} files
    {file} 不是模型；可用 {all} 文件
{name} names a format that is not written; allowed are {all}
    不支持写出 {name} 的格式；可用 {all}
is damaged: its pickle differs from its checksum; get the file again
    已损坏：pickle 与校验和不符；请重新获取文件
this look through a folder is forgotten; look again
    这次文件夹检查的结果已不再保留；请重新检查
there is no such folder; make one first
    没有这个文件夹；请先新建
there is no such folder, or it is outside of what this server may open
    没有这个文件夹，或它不在此服务器可打开的范围内
the folder is missing; give its path on the machine that vitrail runs on
    缺少文件夹；请给出它在运行 vitrail 的机器上的路径
there is no contact sheet; the folder has no usable picture
    没有缩略图；文件夹中没有可用图片
the file is larger than {n#} MiB
    文件超过 {n} MiB
the folder holds {n#} files; begin another one
    该文件夹已有 {n} 个文件；请换一个文件夹
a caption must be UTF-8 text
    说明文字必须是 UTF-8 文本
a caption is longer than {n} bytes
    说明文字超过 {n} 字节
only PNG, JPEG and WebP pictures are kept
    只保存 PNG、JPEG 和 WebP 图片
the votes fall into groups that never met; collect votes between them first
    投票分成了互不相干的几组；请先收集各组之间的投票
the page of this report is gone
    这份报告的页面已不存在
there is no such report; its folder may have been removed
    没有这份报告；它的文件夹可能已被删除
there is no such sample
    没有这张样图
there is no such run; its folder may have been removed
    没有这个训练；它的文件夹可能已被删除
this run has no model yet: it has one once it was stopped in good order, or is finished
    这个训练还没有模型：正常停止或完成之后才有
{name} cannot be fetched: nobody who has it answers; check the network and try again
    无法获取 {name}：提供它的站点都没有应答；请检查网络后重试
fetching {name} failed; the server's log says why
    获取 {name} 失败；原因见服务器日志
no worker lives yet; ask again in a moment
    还没有工作进程；请稍后再试
there is no such model; see the models page
    没有这个模型；参见“模型”页
this picture does not say how it was made
    这张图片没有说明它是怎样生成的
{name} {value} is left out: this program cannot serve it
    未采用 {name} {value}：本程序不支持
made with the model {name}
    所用模型：{name}
EXIF cannot be read: {reason}
    EXIF 无法读取：{reason}
the vitrail record cannot be read: {reason}
    vitrail 记录无法读取：{reason}
the text fields are too long
    文本字段过长
the text field {name} is damaged or too long
    文本字段 {name} 已损坏或过长
give a file, or a recipe of vitrail's own: {all}
    请给出文件，或 vitrail 自带的配方：{all}
left out: {file}: {reason}
    未采用 {file}：{reason}
{count#} pictures can be used, {bad#} files cannot, {captions#} have a caption
    {count} 张图片可用，{bad} 个文件不可用，{captions} 张有说明文字
batches of {batch#}: small sets gain from more steps, large ones from steadier ones
    每批 {batch} 张：小数据集需要更多步数，大数据集需要更稳的步子
variation: {reason}
    增强：{reason}
{count#} pictures are few: shown as they are, a varied copy would be learnt by heart
    {count} 张图片较少：按原样展示，变化后的副本会被背下来
half of the pictures mirrored, up to {share#} % cut off; colours as they are
    半数图片左右翻转，最多裁去 {share}%；颜色不变
{length} pictures long, {passes#} passes over the set; longer runs learn small sets by heart \
(optim.until_images changes it)
    训练长度 {length} 张，即遍历数据集 {passes} 次；过长会把小数据集背下来（可用 optim.until_images 修改）
begins from the shipped model, which knows what words mean in pictures; its size is kept ({size#} px)
    从随附模型开始，它已懂得文字与画面的关系；保持其尺寸（{size} 像素）
there is no shipped model to begin from: the words are learnt from these captions alone
    没有随附模型可用：文字只能从这些说明中学习
fewer than half of the pictures have a caption: the network begins afresh, words steer little
    有说明文字的图片不到一半：网络从零开始，文字的引导作用很小
no captions: the network learns the look of the set, words will not steer it
    没有说明文字：网络只学习这组图片的样子，不受文字引导
{size#} px: half of the pictures have a shorter side of {side#} px or more
    {size} 像素：半数图片的短边不小于 {side} 像素
a network of width {width#} and {depth#} blocks: few pictures
    网络宽度 {width}、{depth} 个模块：图片较少
a network of width {width#} and {depth#} blocks: enough pictures
    网络宽度 {width}、{depth} 个模块：图片充足
stopped at {images} pictures, checkpoint saved; the same command goes on
    已停在第 {images} 张，检查点已保存；可随时继续
stopped at {images} pictures, checkpoint saved; the same request goes on
    已停在第 {images} 张，检查点已保存；可随时继续
finished after {images} pictures; the model is in {place}
    训练完成，共 {images} 张；模型在 {place}
{images} pictures seen; the model is ready
    共看过 {images} 张图片；模型已可使用
{place} is finished: {images} pictures; nothing to do
    {place} 已完成：{images} 张图片；无事可做
"""
